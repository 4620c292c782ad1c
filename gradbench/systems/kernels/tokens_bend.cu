// 2 A (z - z*), A the antisymmetric part of the Jacobian of the attention at z*, from q, k, v, P there
KERNEL bend(
    const float* s, const float* start, const float* attention, const float* skew_in, const float* skew_out, float* out,
    const float* sigma, int rows, int cells, int columns, int b, float scale
) {
    FOR_EVERY_EXAMPLE(rows, b) {
        const int c = row % cells, end = row / (cells * columns) * cells + c;
        const long long place = (long long)row * b + e, of_end = (long long)end * b + e;
        const float* in = skew_in + (long long)c * 4 * D * D;
        const float* back_to = skew_out + (long long)c * 4 * D * D;
        const float* saved = attention + ((long long)end * 4 * b + e) * (HEADS * 256);
        const long long kind = (long long)b * (HEADS * 256);
        Number moved[DT][4], total[DT][4];
        load_rows(moved, s + place * LENGTH, D);
        add_rows(moved, start + of_end * LENGTH, D, -1.0f);
        clear(total);
        ROLLED for (int head = 0; head < D; head += 16) {
            const float* of_head = saved + head * 16;
            Number f[4][2][4], q[2][4], k[2][4], v[2][4], P[2][4], dP[2][4];
            // f[0..2]: changes of q, k and v; f[3]: the change, read through WO
            EVERY (i, 4) read_features<2>(f[i], moved, in, head + i * D);
            load_rows(q, of_head, 16);
            load_rows(k, of_head + kind, 16);
            load_rows(v, of_head + 2 * kind, 16);
            load_rows(P, of_head + 3 * kind, 16);
            set_product(dP, f[0], k);
            add_product(dP, q, f[1]);
            softmax_back(dP, P, scale);
            transpose(f[2]);
            set_product(f[0], P, f[2]);
            set_product(f[1], f[3], v);
            transpose(v);
            add_product(f[0], dP, v);
            softmax_back(f[1], P, scale);
            copy(dP, f[1]);
            transpose(k);
            set_product(f[1], dP, k);
            transpose(q);
            transpose(dP);
            set_product(f[2], dP, q);
            transpose(P);
            transpose(f[3]);
            set_product(v, P, f[3]);
            copy(f[3], v);
            add_in_turn(total, f, back_to, head, 4 * D);
        }
        scaled(total, sigma[c]);
        store_rows(out + place * 16 * D, total, D);
    }
}
