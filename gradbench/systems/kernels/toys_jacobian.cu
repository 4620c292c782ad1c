// v + eps J v, J at a state, from the q, k, v, P or from the t there
KERNEL jacobian(
    const float* v, float* out, const float* saved, const float* ahead_in, const float* ahead_out, const float* sigma,
    const float* damp, const float* eps, int rows, int cells, int b, float scale
) {
    FOR_EVERY_EXAMPLE(rows, (b + 1) / 2) {
        const int c = row % cells;
        const bool both = 2 * e + 1 < b;
        const long long place = (long long)row * b + 2 * e, kind = (long long)b * (HEADS * 64);
        const float* in = ahead_in + (long long)c * IN * D;
        const float* back_to = ahead_out + (long long)c * D * D;
        const float strength = sigma[c], length = eps[c], pull = 1 + damp[c];
        Number z[DT][4], back[DT][4];
        load_examples(z, v + place * LENGTH, D, both);
        clear(back);
        if (ENERGY) {
            Number f[DT][4], moved[DT][4];
            load_examples(f, saved + place * LENGTH, D, both);
            read_features(moved, z, in, 0);
            EVERY_NUMBER (n, r, DT) moved[n][r] = (1.0f - f[n][r] * f[n][r]) * moved[n][r];
            add_features(back, moved, back_to, 0, D);
        } else {
            const float* of_example = saved + ((long long)row * 4 * b + 2 * e) * (HEADS * 64);
            ROLLED for (int heads = 0; heads < D; heads += 16) {
                Number dq[2][4], dk[2][4], dv[2][4], o[2][4];
                read_features(dq, z, in, heads);
                read_features(dk, z, in, heads + D);
                read_features(dv, z, in, heads + 2 * D);
                EVERY (n, 2) {
                    const float* of_head = of_example + (heads / 8 + n) * 64;
                    Number P[1][4], dP[1][4], x[1][4];
                    load_head(x, of_head + kind, both);  // k
                    set_own_product(dP, HEAD(dq, n), x);
                    load_head(x, of_head, both);  // q
                    add_own_product(dP, x, HEAD(dk, n));
                    load_head(P, of_head + 3 * kind, both);
                    softmax_back(dP, P, scale);
                    transpose(HEAD(dv, n));
                    set_own_product(HEAD(o, n), P, HEAD(dv, n));
                    load_head(x, of_head + 2 * kind, both);  // v
                    transpose(x);
                    add_own_product(HEAD(o, n), dP, x);
                }
                add_features(back, o, back_to, heads, D);
            }
        }
        EVERY_NUMBER (n, r, DT) z[n][r] += length * (strength * back[n][r] - pull * z[n][r]);
        store_examples(out + place * LENGTH, z, D, both);
    }
}
