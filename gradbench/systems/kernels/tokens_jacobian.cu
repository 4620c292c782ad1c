// Pi'(u) (v + eps J v), J at a state, from the q, k, v (no v where the attention is a gradient), P and memories there
KERNEL jacobian(
    const float* v, float* out, const float* attention, const float* memory, const float* u, const float* ahead_in,
    const float* ahead_out, const float* sigma, const float* damp, const float* eps, int rows, int cells, int b, float well,
    float scale
) {
    FOR_EVERY_EXAMPLE(rows, b) {
        constexpr int LAST = ENERGY ? 2 : 3;
        const int c = row % cells;
        const long long place = (long long)row * b + e, kind = (long long)b * (HEADS * 256);
        const float* in = ahead_in + (long long)c * IN * D;
        const float* back_to = ahead_out + (long long)c * OUT * D;
        const float* from = v + place * LENGTH;
        float* to = out + place * LENGTH;
        const float* opened = memory + place * 16 * M;
        const float* saved = attention + ((long long)row * (LAST + 1) * b + e) * (HEADS * 256);
        const float length = eps[c], strength = sigma[c];
        Number back[DT][4], z[DT][4];
        clear(back);
        load_rows(z, from, D);
        ROLLED for (int head = 0; head < D; head += 16) {
            const float* of_head = saved + head * 16;
            Number P[2][4], dP[2][4], x[2][4], y[2][4], moved[2][4];
            read_features<2>(x, z, in, PIX + M + head);  // dq
            load_rows(y, of_head + kind, 16);            // k
            set_product(dP, x, y);
            read_features<2>(y, z, in, PIX + M + D + head);  // dk
            load_rows(moved, of_head, 16);                   // q
            add_product(dP, moved, y);
            load_rows(P, of_head + LAST * kind, 16);
            softmax_back(dP, P, scale);
            if (ENERGY) {
                transpose(y);
                set_product(moved, P, y);
                load_rows(y, of_head + kind, 16);
                transpose(y);
                add_product(moved, dP, y);
                scaled(moved, strength);
                add_features<2>(back, moved, back_to, PIX + M + head, OUT);
                transpose(P);
                transpose(x);
                set_product(moved, P, x);
                load_rows(x, of_head, 16);
                transpose(x);
                transpose(dP);
                add_product(moved, dP, x);
                scaled(moved, strength);
                add_features<2>(back, moved, back_to, PIX + M + D + head, OUT);
            } else {
                read_features<2>(x, z, in, PIX + M + 2 * D + head);  // dv
                transpose(x);
                set_product(moved, P, x);
                load_rows(x, of_head + 2 * kind, 16);  // v
                transpose(x);
                add_product(moved, dP, x);
                scaled(moved, strength);
                add_features<2>(back, moved, back_to, PIX + M + head, OUT);
            }
        }
        ROLLED for (int first = 0; first < M; first += 16) {
            Number moved[2][4], open[2][4];
            read_features<2>(moved, z, in, PIX + first);
            load_rows(open, opened + first, M);
            EVERY_NUMBER (n, r, 2) moved[n][r] = where(open[n][r] > 0.0f, moved[n][r], 0.0f);
            add_features<2>(back, moved, back_to, PIX + first, OUT);
        }
        {
            Number y[KT][4];
            load_pixels<KT>(y, from + 16 * D, 0);
            add_features<KT>(back, y, back_to, 0, OUT);
        }
        ROLLED for (int first = 0; first < PT; first += 2) {
            Number pixels[2][4], y[2][4];
            read_features<2>(pixels, z, in, 8 * first);
            load_pixels<2>(y, from + 16 * D, first);
            EVERY_NUMBER (n, r, 2) pixels[n][r] = y[n][r] + length * (pixels[n][r] - y[n][r]);
            store_pixels<2>(to + 16 * D, pixels, first);
        }
        const float pull = 2 * well + damp[c];
        EVERY_NUMBER (n, r, DT) z[n][r] = z[n][r] + length * (back[n][r] - pull * z[n][r]);
        if (PROJECTS) {
            load_rows(back, u + place * 16 * D, D);
            project_product(z, back);
        }
        store_rows(to, z, D);
    }
}
