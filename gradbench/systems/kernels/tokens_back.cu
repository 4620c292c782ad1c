// Back through a step: a <- p + eps J^T p and summed += p with p = Pi'(u)^T a, the tokens of s and of p, and the
// credits and features of every token, which the gradient of the weights is made of
KERNEL back(
    const float* s, float* a, float* summed, float* tokens, float* moved, float* credits, float* features,
    const float* ahead_in, const float* ahead_out, const float* skew_in, const float* skew_out, const float* clamped,
    const float* sigma, const float* damp, const float* eps, int rows, int cells, int b, float well, float scale
) {
    FOR_EVERY_EXAMPLE(rows, b) {
        const int c = row % cells;
        const bool first_row = row < cells;  // all rows of T1 have the same features
        const long long place = (long long)row * b + e, of_cell = (long long)c * b + e;
        const float* in = ahead_in + (long long)c * IN * D;
        const float* back_to = ahead_out + (long long)c * OUT * D;
        const float* turned_in = skew_in + (long long)c * 4 * D * D;
        const float* turned_out = skew_out + (long long)c * 4 * D * D;
        const float* from = s + of_cell * LENGTH;
        float* of_a = a + place * LENGTH;
        float* of_sum = summed + place * LENGTH;
        float* credit = credits + place * 16 * IN;
        float* feature = features + of_cell * 16 * OUT;
        const float length = eps[c], strength = sigma[c], pull = 2 * well + damp[c];
        Number back[DT][4], z[DT][4], p[DT][4];
        load_rows(z, from, D);
        load_rows(p, of_a, D);
        clear(back);
        if (PROJECTS) {
            add_pixels(back, from + 16 * D, back_to);
            add_others(back, z, in, back_to, scale, strength);
            add_rows(back, clamped + of_cell * 16 * D, D, 1.0f);
            EVERY_NUMBER (n, r, DT) back[n][r] = z[n][r] + length * (back[n][r] - pull * z[n][r]);
            project_product(p, back);
            clear(back);
        }
        store_rows(moved + place * 16 * D, p, D);
        {
            Number sum[DT][4];
            load_rows(sum, of_sum, D);
            EVERY_NUMBER (n, r, DT) sum[n][r] += p[n][r];
            store_rows(of_sum, sum, D);
        }
        if (first_row) store_rows(tokens + of_cell * 16 * D, z, D);
        {
            Number y[PT][4];
            if (first_row) {
                load_pixels<PT>(y, from + 16 * D, 0);
                store_rows<PT>(feature, y, OUT);
            }
            load_pixels<PT>(y, of_a + 16 * D, 0);
            store_rows<PT>(credit, y, IN);
            add_features<PT>(back, y, back_to, 0, OUT);
        }
        ROLLED for (int first = 0; first < PT; first += 2) {
            Number pixels[2][4], y[2][4];
            load_pixels<2>(y, of_a + 16 * D, first);
            load_pixels<2>(pixels, of_sum + 16 * D, first);
            EVERY_NUMBER (n, r, 2) pixels[n][r] = pixels[n][r] + y[n][r];
            store_pixels<2>(of_sum + 16 * D, pixels, first);
            read_features<2>(pixels, p, in, 8 * first);
            EVERY_NUMBER (n, r, 2) pixels[n][r] = y[n][r] + length * (pixels[n][r] - y[n][r]);
            store_pixels<2>(of_a + 16 * D, pixels, first);
        }
        ROLLED for (int first = PIX; first < PIX + M; first += 16) {
            Number memory[2][4], carried[2][4];
            read_features<2>(memory, z, in, first);
            read_features<2>(carried, p, in, first);
            EVERY_NUMBER (n, r, 2) {
                carried[n][r] = where(memory[n][r] > 0.0f, carried[n][r], 0.0f);
                memory[n][r] = larger(memory[n][r], 0.0f);
            }
            if (first_row) store_rows<2>(feature + first, memory, OUT);
            store_rows<2>(credit + first, carried, IN);
            add_features<2>(back, carried, back_to, first, OUT);
        }
        ROLLED for (int head = 0; head < D; head += 16) {
            const int heads = PIX + M + head;
            Number q[2][4], k[2][4], P[2][4], dP[2][4], x[2][4], y[2][4];
            read_features<2>(q, z, in, heads);
            read_features<2>(k, z, in, heads + D);
            set_product(P, q, k);
            softmax(P, scale);
            if (ENERGY) {
                Number made[2][4];
                read_features<2>(x, p, in, heads);      // of q
                read_features<2>(y, p, in, heads + D);  // of k
                set_product(dP, x, k);
                add_product(dP, q, y);
                softmax_back(dP, P, scale);
                transpose(k);
                transpose(y);
                if (first_row) {
                    set_product(made, P, k);
                    scaled(made, strength);
                    store_rows<2>(feature + heads, made, OUT);
                }
                set_product(made, dP, k);
                add_product(made, P, y);
                scaled(made, strength);
                store_rows<2>(credit + heads, made, IN);
                add_features<2>(back, made, back_to, heads, OUT);
                transpose(q);
                transpose(x);
                transpose(P);
                transpose(dP);
                if (first_row) {
                    set_product(made, P, q);
                    scaled(made, strength);
                    store_rows<2>(feature + heads + D, made, OUT);
                }
                set_product(made, dP, q);
                add_product(made, P, x);
                scaled(made, strength);
                store_rows<2>(credit + heads + D, made, IN);
                add_features<2>(back, made, back_to, heads + D, OUT);
            } else {
                Number made[3][2][4];
                read_features<2>(x, z, in, heads + 2 * D);        // v
                read_features<2>(y, p, turned_in, 3 * D + head);  // of the output of attention
                set_product(dP, y, x);
                softmax_back(dP, P, scale);
                if (first_row) {
                    transpose(x);
                    set_product(made[0], P, x);
                    scaled(made[0], strength);
                    store_rows<2>(feature + heads, made[0], OUT);
                }
                transpose(k);
                set_product(made[0], dP, k);
                transpose(q);
                transpose(dP);
                set_product(made[1], dP, q);
                transpose(P);
                transpose(y);
                set_product(made[2], P, y);
                EVERY (i, 3) {
                    scaled(made[i], strength);
                    store_rows<2>(credit + heads + i * D, made[i], IN);
                    scaled(made[i], -1.0f);
                }
                add_in_turn(back, made, turned_out, D + head, 4 * D);
            }
        }
        EVERY_NUMBER (n, r, DT) p[n][r] += length * (back[n][r] - pull * p[n][r]);
        store_rows(of_a, p, D);
    }
}
