// Tiles of numbers that a warp holds, and their products.
//
// A tile x[n] of 16 rows and 8 columns lies in four numbers of every lane. The lane 4 g + t has (g, 2 t), (g, 2 t + 1),
// (g + 8, 2 t) and (g + 8, 2 t + 1). Tiles beside each other, x[0], x[1], ..., have 8 columns each.
//
// Tensor cores take a product as a sum over columns of both factors, a b^T. The order within such a sum is free, so it
// is the order in which a lane has its numbers: a product is a factor of the next one without a move between lanes. A
// matrix of weights lies in memory in this order, see `fragments` in programs.py.
//
// A product takes three passes of TF32 for one of float32, high high + low high + high low. Tensor cores add up eight
// products at a time and cut the sum off to float32, towards zero. A sum of 8 n products so loses (n + 1) / 6 of 2^-23
// of itself on average, whatever its numbers are. `finish` puts this back. The two small passes are added up apart.

#define LOST (CUTS_OFF ? 1.0f / 6 / 8388608 : 0.0f)

FN Place g() { return lane() / 4; }
FN Place t() { return lane() % 4; }

template <int N> FN void clear(Number (&x)[N][4]) {
    EVERY_NUMBER (n, r, N) x[n][r] = 0.0f;
}

// total += main + small, and what tensor cores cut off of a sum of `groups` groups of 8
FN void finish(Number (&total)[4], const Number (&main)[4], const Number (&small)[4], int groups) {
    EVERY (r, 4) {
        total[r] += main[r] + fused(main[r], (groups + 1) * LOST, small[r]);
    }
}

// total += a W^T: W has 8 NT rows of 8 K numbers. `apart`: from a pair of tiles of rows to the next one; `along`: from
// one tile of a pair to the other; `next`: from a pair of tiles of columns to the next one
template <int K, int NT>
FN void add_product(
    Number (&total)[NT][4], const Number (&a)[K][4], const float* W, int apart, int along, int next = 128
) {
    static_assert(NT % 2 == 0);
    constexpr int G = 2;  // more tiles at a time take more registers, and no less time
    _Pragma("unroll") for (int first = 0; first < NT; first += G) {
        Number main[G][4], small[G][4];
        clear(main);
        clear(small);
        EVERY (pair, (K + 1) / 2) {
            Number w[G][4];
            EVERY (n, G) load_four(W + (first + n) / 2 * apart + (first + n) % 2 * along + pair * next, 4 * lane(), w[n]);
            EVERY (half, 2) {
                const int k = 2 * pair + half;
                if (k < K) {
                    Number high[4], low[4], b[G][2], c[G][2];
                    EVERY (r, 4) split(a[k][r % 2 * 2 + r / 2], high[r], low[r]);
                    EVERY (n, G) {
                        split(w[n][2 * half], b[n][0], c[n][0]);
                        split(w[n][2 * half + 1], b[n][1], c[n][1]);
                    }
                    EVERY (n, G) multiply(small[n], low, b[n][0], b[n][1]);
                    EVERY (n, G) multiply(main[n], high, b[n][0], b[n][1]);
                    EVERY (n, G) multiply(small[n], high, c[n][0], c[n][1]);
                }
            }
        }
        EVERY (n, G) finish(total[first + n], main[n], small[n], K);
    }
}

// total += a b^T, of 16 x 16 numbers each
FN void add_product(Number (&total)[2][4], const Number (&a)[2][4], const Number (&b)[2][4]) {
    Number main[2][4], small[2][4];
    clear(main);
    clear(small);
    EVERY (k, 2) {
        Number high[4], low[4], bh[4], bl[4];
        EVERY (r, 4) {
            split(a[k][r % 2 * 2 + r / 2], high[r], low[r]);
            split(b[k][r], bh[r], bl[r]);
        }
        EVERY (n, 2) multiply(small[n], low, bh[2 * n], bh[2 * n + 1]);
        EVERY (n, 2) multiply(main[n], high, bh[2 * n], bh[2 * n + 1]);
        EVERY (n, 2) multiply(small[n], high, bl[2 * n], bl[2 * n + 1]);
    }
    EVERY (n, 2) finish(total[n], main[n], small[n], 2);
}

// product = a b^T
FN void set_product(Number (&product)[2][4], const Number (&a)[2][4], const Number (&b)[2][4]) {
    clear(product);
    add_product(product, a, b);
}

// one of the two numbers that a lane has of the transpose of 8 x 8 numbers, of which it has an even and an odd column
FN Number turned(Number even, Number odd, int r) {
    const Place from = 8 * t() + g() / 2 + 4 * r;  // row 2 t + r, column g
    return where(g() % 2 == 1, of_lane(odd, from), of_lane(even, from));
}

// the transpose of 16 x 16 numbers
FN void transpose(Number (&x)[2][4]) {
    Number y[2][4];
    EVERY (n, 2)
        EVERY (half, 2)
            EVERY (r, 2) y[half][2 * n + r] = turned(x[n][2 * half], x[n][2 * half + 1], r);
    EVERY_NUMBER (n, r, 2) x[n][r] = y[n][r];
}

template <int N> FN void load_rows(Number (&x)[N][4], const float* from, int width) {
    EVERY (n, N) {
        load_two(from, g() * width + 8 * n + 2 * t(), x[n][0], x[n][1]);
        load_two(from, (g() + 8) * width + 8 * n + 2 * t(), x[n][2], x[n][3]);
    }
}

template <int N> FN void add_rows(Number (&x)[N][4], const float* from, int width, float factor) {
    Number more[N][4];
    load_rows(more, from, width);
    EVERY_NUMBER (n, r, N) x[n][r] += factor * more[n][r];
}

template <int N> FN void store_rows(float* to, const Number (&x)[N][4], int width) {
    EVERY (n, N) {
        store_two(to, g() * width + 8 * n + 2 * t(), x[n][0], x[n][1]);
        store_two(to, (g() + 8) * width + 8 * n + 2 * t(), x[n][2], x[n][3]);
    }
}

template <int N> FN void scaled(Number (&x)[N][4], float factor) {
    EVERY_NUMBER (n, r, N) x[n][r] = factor * x[n][r];
}

// the sum over the columns that a row has
FN Number over_row(Number a) {
    a = a + beside(a, 1);
    return a + beside(a, 2);
}

// the sum over all lanes
FN Number over_warp(Number a) {
    EVERY (i, 5) a += beside(a, 1 << i);
    return a;
}

FN Number most_of_row(Number a) {
    a = larger(a, beside(a, 1));
    return larger(a, beside(a, 2));
}

// over the columns of scale P
template <int N> FN void softmax(Number (&P)[N][4], float scale) {
    scaled(P, scale);
    EVERY_HALF (half) {
        Number most = larger(P[0][half], P[0][half + 1]), sum = 0.0f;
        EVERY (n, N) most = larger(most, larger(P[n][half], P[n][half + 1]));
        most = most_of_row(most);
        EVERY (n, N)
            OF_HALF (r, half) {
                P[n][r] = exponential(P[n][r] - most);
                sum += P[n][r];
            }
        sum = over_row(sum);
        EVERY (n, N)
            OF_HALF (r, half) P[n][r] = P[n][r] / sum;
    }
}

// dP <- scale (P dP - P times the sum of P dP over its columns)
template <int N> FN void softmax_back(Number (&dP)[N][4], const Number (&P)[N][4], float scale) {
    EVERY_HALF (half) {
        Number sum = 0.0f;
        EVERY (n, N)
            OF_HALF (r, half) {
                dP[n][r] = P[n][r] * (scale * dP[n][r]);
                sum += dP[n][r];
            }
        sum = over_row(sum);
        EVERY (n, N)
            OF_HALF (r, half) dP[n][r] -= P[n][r] * sum;
    }
}

// ---- weights: D is the width of a token ----

constexpr int DT = D / 8;  // tiles of tokens

FN const float* to_features(const float* in, int first) { return in + first / 8 * (D / 16 * 128); }
FN const float* to_tokens(const float* out, int first) { return out + first / 16 * 128; }

// f = z W^T, 8 N features from `first` on
template <int N> FN void read_features(Number (&f)[N][4], const Number (&z)[DT][4], const float* in, int first) {
    clear(f);
    add_product<DT, N>(f, z, to_features(in, first), D / 16 * 256, D / 16 * 128);
}

// total += the way back of 8 K features, from `first` on, to tokens; rows of `width` features
template <int K>
FN void add_features(Number (&total)[DT][4], const Number (&f)[K][4], const float* out, int first, int width) {
    add_product<K, DT>(total, f, to_tokens(out, first), width / 16 * 256, width / 16 * 128);
}

FN void copy(Number (&x)[2][4], const Number (&y)[2][4]) { EVERY_NUMBER (n, r, 2) x[n][r] = y[n][r]; }

// total += the way back of f[i], 16 features from first + i D on; f is used up. An even number of matrices is taken two
// at a time, so that half as many sums are finished. Unrolled, this is more code than a GPU reads quickly.
template <int N> FN void add_in_turn(
    Number (&total)[DT][4], Number (&f)[N][2][4], const float* out, int first, int width
) {
    constexpr int G = N % 2 ? 1 : 2;
    ROLLED for (int i = 0; i < N; i += G) {
        const Number(&of_group)[2 * G][4] = reinterpret_cast<const Number(&)[2 * G][4]>(f);
        const float* W = to_tokens(out, first + i * D);
        add_product<2 * G, DT>(total, of_group, W, width / 16 * 256, width / 16 * 128, D / 16 * 128);
        EVERY (k, N - G) copy(f[k], f[k + G]);
    }
}
