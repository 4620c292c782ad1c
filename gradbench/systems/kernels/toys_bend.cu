// 2 A (s - s*), A the antisymmetric part of the Jacobian of the attention at s*, from q, k, v, P there
KERNEL bend(
    const float* s, const float* start, const float* attention, const float* skew_in, const float* skew_out, float* out,
    const float* sigma, int rows, int cells, int columns, int b, float scale
) {
    FOR_EVERY_EXAMPLE(rows, (b + 1) / 2) {
        const int c = row % cells, end = row / (cells * columns) * cells + c;
        const bool both = 2 * e + 1 < b;
        const long long place = (long long)row * b + 2 * e, of_end = (long long)end * b + 2 * e;
        const float* in = skew_in + (long long)c * 4 * D * D;
        const float* back_to = skew_out + (long long)c * 4 * D * D;
        const float* saved = attention + ((long long)end * 4 * b + 2 * e) * (HEADS * 64);
        const long long kind = (long long)b * (HEADS * 64);
        Number moved[DT][4], total[DT][4];
        load_examples(moved, s + place * LENGTH, D, both);
        load_examples(total, start + of_end * LENGTH, D, both);
        EVERY_NUMBER (n, r, DT) moved[n][r] -= total[n][r];
        clear(total);
        ROLLED for (int heads = 0; heads < D; heads += 16) {
            Number dq[2][4], dk[2][4], dv[2][4], a[2][4];
            read_features(dq, moved, in, heads);
            read_features(dk, moved, in, heads + D);
            read_features(dv, moved, in, heads + 2 * D);
            read_features(a, moved, in, heads + 3 * D);
            // dq, dk, dv and a become what goes back through the features of the output, q, k and v
            EVERY (n, 2) {
                const float* of_head = saved + (heads / 8 + n) * 64;
                Number P[1][4], dP[1][4], q[1][4], k[1][4], v[1][4], o[1][4];
                load_head(q, of_head, both);
                load_head(k, of_head + kind, both);
                load_head(v, of_head + 2 * kind, both);
                load_head(P, of_head + 3 * kind, both);
                set_own_product(dP, HEAD(dq, n), k);
                add_own_product(dP, q, HEAD(dk, n));
                softmax_back(dP, P, scale);
                transpose(HEAD(dv, n));
                set_own_product(o, P, HEAD(dv, n));
                set_own_product(HEAD(dv, n), HEAD(a, n), v);
                transpose(v);
                add_own_product(o, dP, v);
                EVERY (r, 4) {
                    dq[n][r] = o[0][r];
                    dP[0][r] = dv[n][r];
                }
                softmax_back(dP, P, scale);
                transpose(k);
                set_own_product(HEAD(dk, n), dP, k);
                transpose(q);
                transpose(dP);
                set_own_product(HEAD(dv, n), dP, q);
                transpose(P);
                transpose(HEAD(a, n));
                set_own_product(o, P, HEAD(a, n));
                EVERY (r, 4) a[n][r] = o[0][r];
            }
            add_features(total, dq, back_to, heads, 4 * D);
            add_features(total, dk, back_to, heads + D, 4 * D);
            add_features(total, dv, back_to, heads + 2 * D, 4 * D);
            add_features(total, a, back_to, heads + 3 * D, 4 * D);
        }
        scaled(total, sigma[c]);
        store_examples(out + place * LENGTH, total, D, both);
    }
}
