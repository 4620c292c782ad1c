// What the kernels of the transformers share.
//
// Letters: N = 16 tokens of D numbers in heads of 16, M memories, AREA pixels of a patch; q, k, v and the weights P of
// attention; s (row, cell, example, number) with rows of T1 (i) and of nudges (m), cells c and examples b. Features of
// a token are the pixels of its patch, its memories, and the numbers of its heads.
//
// Constants that a kernel is compiled for: D, M, CH, PATCH, ENERGY (the attention is a gradient), PROJECTS.

constexpr int HEADS = D / 16;
constexpr int AREA = CH * PATCH * PATCH, PIX = (AREA + 15) / 16 * 16, PT = PIX / 8, KT = (AREA + 7) / 8;
constexpr int IMG = 4 * PATCH, PIXELS = CH * IMG * IMG, LENGTH = 16 * D + PIXELS;
constexpr int IN = PIX + M + (ENERGY ? 2 : 3) * D, OUT = PIX + M + (ENERGY ? 2 : 1) * D;

// the number of a pixel of a patch in column r of tile n
FN Place pixel_of(int n, int r) { return 8 * n + 2 * t() + r % 2; }

// where pixel j of the patch of token g, or of g + 8, lies in an image
FN Place place_of(Place j, int r) {
    const Place corner = g() / 4 * (PATCH * IMG) + g() % 4 * PATCH + r / 2 * 2 * (PATCH * IMG);
    if (CH == 1) return corner + j + j / PATCH * (IMG - PATCH);
    return corner + j / (PATCH * PATCH) * (IMG * IMG) + j % (PATCH * PATCH) / PATCH * IMG + j % PATCH;
}

template <int N> FN void load_pixels(Number (&y)[N][4], const float* from, int first) {
    EVERY_NUMBER (n, r, N) {
        const Place j = pixel_of(first + n, r);
        y[n][r] = load(from, place_of(j, r), j < AREA);
    }
}

template <int N> FN void store_pixels(float* to, const Number (&y)[N][4], int first) {
    EVERY_NUMBER (n, r, N) {
        const Place j = pixel_of(first + n, r);
        store(to, place_of(j, r), y[n][r], j < AREA);
    }
}

// back += the way from the pixels of an image to tokens
FN void add_pixels(Number (&back)[DT][4], const float* from, const float* out) {
    Number y[KT][4];
    load_pixels<KT>(y, from, 0);
    add_features<KT>(back, y, out, 0, OUT);
}

FN void centre(Number (&z)[DT][4]) {
    EVERY_HALF (half) {
        Number sum = 0.0f;
        EVERY (n, DT) sum = sum + (z[n][half] + z[n][half + 1]);
        sum = over_row(sum) / D;
        EVERY (n, DT)
            OF_HALF (r, half) z[n][r] = z[n][r] - sum;
    }
}

FN Number mean_product(const Number (&u)[DT][4], const Number (&p)[DT][4], int half) {
    Number sum = 0.0f;
    EVERY (n, DT) sum = sum + (u[n][half] * p[n][half] + u[n][half + 1] * p[n][half + 1]);
    return over_row(sum) / D;
}

FN void project(Number (&z)[DT][4]) {
    centre(z);
    EVERY_HALF (half) {
        const Number size = root(mean_product(z, z, half)) + 1e-5f;
        EVERY (n, DT)
            OF_HALF (r, half) z[n][r] = z[n][r] / size;
    }
}

// p <- Pi'(u) p; u is centred on the way
FN void project_product(Number (&p)[DT][4], Number (&u)[DT][4]) {
    centre(u);
    centre(p);
    EVERY_HALF (half) {
        const Number std = root(mean_product(u, u, half));
        const Number along = mean_product(u, p, half) / (std * (std + 1e-5f));
        EVERY (n, DT)
            OF_HALF (r, half) p[n][r] = (p[n][r] - u[n][r] * along) / (std + 1e-5f);
    }
}

// back += the force of memories and attention on the tokens z
FN void add_others(
    Number (&back)[DT][4], const Number (&z)[DT][4], const float* in, const float* out, float scale, float strength
) {
    ROLLED for (int first = PIX; first < PIX + M; first += 16) {
        Number memory[2][4];
        read_features<2>(memory, z, in, first);
        EVERY_NUMBER (n, r, 2) memory[n][r] = larger(memory[n][r], 0.0f);
        add_features<2>(back, memory, out, first, OUT);
    }
    ROLLED for (int head = PIX + M; head < PIX + M + D; head += 16) {
        Number q[2][4], k[2][4], P[2][4], moved[2][4];
        read_features<2>(q, z, in, head);
        read_features<2>(k, z, in, head + D);
        set_product(P, q, k);
        softmax(P, scale);
        if (ENERGY) {
            transpose(k);
            set_product(moved, P, k);
            scaled(moved, strength);
            add_features<2>(back, moved, out, head, OUT);
            transpose(P);
            transpose(q);
            set_product(moved, P, q);
            scaled(moved, strength);
            add_features<2>(back, moved, out, head + D, OUT);
        } else {
            read_features<2>(k, z, in, head + 2 * D);
            transpose(k);
            set_product(moved, P, k);
            scaled(moved, strength);
            add_features<2>(back, moved, out, head, OUT);
        }
    }
}
