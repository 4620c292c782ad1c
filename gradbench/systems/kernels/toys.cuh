// What the kernels of the toys share.
//
// A warp computes two examples of 8 tokens of 32 numbers: the rows g of its tiles are the tokens of the first one, and
// the rows g + 8 those of the second one. Features are q, k and v of 4 heads of 8 numbers, or the 32 numbers
// t = tanh(z S) of the conservative toy. A head of both examples is one tile, and each example attends to itself alone:
// products of heads are taken once with the factor of either example, and the rows of the other one are dropped.
//
// Letters: s (row, cell, example, number) with rows of T1 (i) and of nudges (m), cells c and examples b; q, k, v and
// the weights P of attention.
//
// Constants that a kernel is compiled for: D = 32, ENERGY (the conservative toy).

constexpr int HEADS = 4, OUTPUTS = 16, LENGTH = 8 * D, IN = ENERGY ? D : 3 * D;

// rows of an example that is not there are 0
template <int N> FN void load_examples(Number (&x)[N][4], const float* from, int width, bool both) {
    EVERY (n, N) {
        load_two(from, g() * width + 8 * n + 2 * t(), x[n][0], x[n][1]);
        x[n][2] = x[n][3] = 0.0f;
        if (both) load_two(from + 8 * width, g() * width + 8 * n + 2 * t(), x[n][2], x[n][3]);
    }
}

template <int N> FN void store_examples(float* to, const Number (&x)[N][4], int width, bool both) {
    EVERY (n, N) {
        store_two(to, g() * width + 8 * n + 2 * t(), x[n][0], x[n][1]);
        if (both) store_two(to + 8 * width, g() * width + 8 * n + 2 * t(), x[n][2], x[n][3]);
    }
}

// a head of q, k, v or P
FN void load_head(Number (&x)[1][4], const float* from, bool both) {
    load_two(from, g() * 8 + 2 * t(), x[0][0], x[0][1]);
    x[0][2] = x[0][3] = 0.0f;
    if (both) load_two(from + HEADS * 64, g() * 8 + 2 * t(), x[0][2], x[0][3]);
}

// total += a b^T of each example
FN void add_own_product(Number (&total)[1][4], const Number (&a)[1][4], const Number (&b)[1][4]) {
    Number high[4], low[4], bh[4], bl[4], main[2][4], small[2][4];
    EVERY (r, 4) {
        split(a[0][r % 2 * 2 + r / 2], high[r], low[r]);
        split(b[0][r], bh[r], bl[r]);
    }
    clear(main);
    clear(small);
    EVERY (n, 2) multiply(small[n], low, bh[2 * n], bh[2 * n + 1]);
    EVERY (n, 2) multiply(main[n], high, bh[2 * n], bh[2 * n + 1]);
    EVERY (n, 2) multiply(small[n], high, bl[2 * n], bl[2 * n + 1]);
    EVERY (r, 2) {
        main[0][r + 2] = main[1][r + 2];
        small[0][r + 2] = small[1][r + 2];
    }
    finish(total[0], main[0], small[0], 1);
}

FN void set_own_product(Number (&product)[1][4], const Number (&a)[1][4], const Number (&b)[1][4]) {
    clear(product);
    add_own_product(product, a, b);
}

// the transpose of each example
FN void transpose(Number (&x)[1][4]) {
    Number y[4];
    EVERY (half, 2)
        EVERY (r, 2) y[2 * half + r] = turned(x[0][2 * half], x[0][2 * half + 1], r);
    EVERY (r, 4) x[0][r] = y[r];
}

// one of the two heads of a pair of tiles
#define HEAD(x, n) reinterpret_cast<Number(&)[1][4]>(x[n])

// back += the force of the coupling on tokens, without its scale
FN void add_coupling(
    Number (&back)[DT][4], const Number (&z)[DT][4], const float* in, const float* out, float scale
) {
    if (ENERGY) {
        Number f[DT][4];
        read_features(f, z, in, 0);
        EVERY_NUMBER (n, r, DT) f[n][r] = tangent(f[n][r]);
        add_features(back, f, out, 0, D);
    } else {
        ROLLED for (int heads = 0; heads < D; heads += 16) {
            Number q[2][4], k[2][4], v[2][4], o[2][4];
            read_features(q, z, in, heads);
            read_features(k, z, in, heads + D);
            read_features(v, z, in, heads + 2 * D);
            EVERY (n, 2) {
                Number P[1][4];
                set_own_product(P, HEAD(q, n), HEAD(k, n));
                softmax(P, scale);
                transpose(HEAD(v, n));
                set_own_product(HEAD(o, n), P, HEAD(v, n));
            }
            add_features(back, o, out, heads, D);
        }
    }
}

// slope = (s R - target) R^T of each example
FN void set_cost_slope(
    Number (&slope)[DT][4], const Number (&z)[DT][4], const float* readout, const float* target, bool both
) {
    Number off[2][OUTPUTS];
    EVERY (half, 2)
        EVERY (o, OUTPUTS) off[half][o] = 0.0f;
    EVERY (n, DT)
        EVERY (r, 2)
            EVERY (four, OUTPUTS / 4) {
                Number R[4];
                load_four(readout, ((g() * D + 8 * n + 2 * t() + r) * (OUTPUTS / 4) + four) * 4, R);
                EVERY (o, 4)
                    EVERY (half, 2) off[half][4 * four + o] += z[n][2 * half + r] * R[o];
            }
    EVERY (half, 2)
        EVERY (o, OUTPUTS) {
            off[half][o] = over_warp(off[half][o]);
            if (half == 0 || both) off[half][o] -= target[half * OUTPUTS + o];
        }
    clear(slope);
    EVERY (n, DT)
        EVERY (r, 2)
            EVERY (four, OUTPUTS / 4) {
                Number R[4];
                load_four(readout, ((g() * D + 8 * n + 2 * t() + r) * (OUTPUTS / 4) + four) * 4, R);
                EVERY (o, 4)
                    EVERY (half, 2) slope[n][2 * half + r] += off[half][4 * four + o] * R[o];
            }
}
