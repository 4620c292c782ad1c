// Back through a step: a <- p + eps J^T p and summed += p with p = a, p itself, and the credits and the features of
// every token. Credits and features hold the scale of the coupling.
KERNEL back(
    const float* s, float* a, float* summed, float* moved, float* credits, float* features, const float* ahead_in,
    const float* ahead_out, const float* skew_in, const float* skew_out, const float* sigma, const float* damp,
    const float* eps, int rows, int cells, int b, float scale
) {
    FOR_EVERY_EXAMPLE(rows, (b + 1) / 2) {
        const int c = row % cells;
        const bool both = 2 * e + 1 < b, first_row = row < cells;  // all rows of T1 have the same features
        const long long place = (long long)row * b + 2 * e, of_cell = (long long)c * b + 2 * e;
        const float* in = ahead_in + (long long)c * IN * D;
        const float strength = sigma[c], length = eps[c], pull = 1 + damp[c];
        float* credit = credits + place * 8 * IN;
        float* feature = features + of_cell * LENGTH;
        Number z[DT][4], p[DT][4], back[DT][4];
        load_examples(z, s + of_cell * LENGTH, D, both);
        load_examples(p, a + place * LENGTH, D, both);
        store_examples(moved + place * LENGTH, p, D, both);
        clear(back);
        if (ENERGY) {
            Number f[DT][4], carried[DT][4];
            read_features(f, z, in, 0);
            read_features(carried, p, in, 0);
            EVERY_NUMBER (n, r, DT) {
                f[n][r] = tangent(f[n][r]);
                carried[n][r] = strength * ((1.0f - f[n][r] * f[n][r]) * carried[n][r]);
                f[n][r] = strength * f[n][r];
            }
            if (first_row) store_examples(feature, f, D, both);
            store_examples(credit, carried, IN, both);
            add_features(back, carried, ahead_out + (long long)c * D * D, 0, D);
        } else {
            const float* turned_in = skew_in + (long long)c * 4 * D * D;
            const float* turned_out = skew_out + (long long)c * 4 * D * D;
            ROLLED for (int heads = 0; heads < D; heads += 16) {
                Number q[2][4], k[2][4], v[2][4], x[2][4];
                read_features(q, z, in, heads);
                read_features(k, z, in, heads + D);
                read_features(v, z, in, heads + 2 * D);
                read_features(x, p, turned_in, heads + 3 * D);
                Number output[2][4];
                // q, k and v become their credits
                EVERY (n, 2) {
                    Number P[1][4], dP[1][4], of_q[1][4];
                    set_own_product(P, HEAD(q, n), HEAD(k, n));
                    softmax(P, scale);
                    set_own_product(dP, HEAD(x, n), HEAD(v, n));
                    softmax_back(dP, P, scale);
                    transpose(HEAD(v, n));
                    set_own_product(HEAD(output, n), P, HEAD(v, n));
                    transpose(P);
                    transpose(HEAD(x, n));
                    set_own_product(HEAD(v, n), P, HEAD(x, n));
                    transpose(HEAD(k, n));
                    set_own_product(of_q, dP, HEAD(k, n));
                    transpose(HEAD(q, n));
                    transpose(dP);
                    set_own_product(HEAD(k, n), dP, HEAD(q, n));
                    EVERY (r, 4) q[n][r] = of_q[0][r];
                }
                scaled(output, strength);
                scaled(q, strength);
                scaled(k, strength);
                scaled(v, strength);
                if (first_row) store_examples(feature + heads, output, D, both);
                store_examples(credit + heads, q, IN, both);
                store_examples(credit + heads + D, k, IN, both);
                store_examples(credit + heads + 2 * D, v, IN, both);
                Number carried[DT][4];
                clear(carried);
                add_features(carried, q, turned_out, heads + D, 4 * D);
                add_features(carried, k, turned_out, heads + 2 * D, 4 * D);
                add_features(carried, v, turned_out, heads + 3 * D, 4 * D);
                EVERY_NUMBER (n, r, DT) back[n][r] -= carried[n][r];
            }
        }
        load_examples(z, summed + place * LENGTH, D, both);
        EVERY_NUMBER (n, r, DT) {
            z[n][r] += p[n][r];
            p[n][r] += length * (back[n][r] - pull * p[n][r]);
        }
        store_examples(summed + place * LENGTH, z, D, both);
        store_examples(a + place * LENGTH, p, D, both);
    }
}
