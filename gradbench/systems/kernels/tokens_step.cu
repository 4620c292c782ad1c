// Pi(s + eps (F(s) - nudge mask (y - x) - bent))
KERNEL step(
    const float* s, float* out, const float* ahead_in, const float* ahead_out, const float* clamped, const float* bias,
    const float* mask, const float* target, const float* nudge, const float* bent, const float* sigma,
    const float* damp, const float* eps, int rows, int cells, int columns, int b, float well, float scale
) {
    FOR_EVERY_EXAMPLE(rows, b) {
        const int c = row % cells;
        const long long place = (long long)row * b + e, of_cell = (long long)c * b + e;
        const float* in = ahead_in + (long long)c * IN * D;
        const float* back_to = ahead_out + (long long)c * OUT * D;
        const float* from = s + place * LENGTH;
        float* to = out + place * LENGTH;
        const float length = eps[c];
        Number back[DT][4], z[DT][4];
        load_rows(z, from, D);  // before the pixels: both are waited for together
        clear(back);
        add_pixels(back, from + 16 * D, back_to);
        ROLLED for (int first = 0; first < PT; first += 2) {
            Number pixels[2][4], y[2][4];
            read_features<2>(pixels, z, in, 8 * first);
            load_pixels<2>(y, from + 16 * D, first);
            EVERY_NUMBER (n, r, 2) {
                const Place j = pixel_of(first + n, r);
                const Truth there = j < AREA;
                const Place channel = CH == 1 ? 0 : j / (PATCH * PATCH);
                Number push = pixels[n][r] + (load(bias + c * CH, channel, there) - y[n][r]);
                if (nudge) {
                    const Number off = y[n][r] - load(target + of_cell * PIXELS, place_of(j, r), there);
                    push = push - nudge[row % (columns * cells)] *
                                      (off * load(mask + of_cell * PIXELS, place_of(j, r), there));
                }
                pixels[n][r] = y[n][r] + length * push;
            }
            store_pixels<2>(to + 16 * D, pixels, first);
        }
        add_others(back, z, in, back_to, scale, sigma[c]);
        add_rows(back, clamped + of_cell * 16 * D, D, 1.0f);
        if (bent) add_rows(back, bent + place * 16 * D, D, -1.0f);
        const float pull = 2 * well + damp[c];
        EVERY_NUMBER (n, r, DT) z[n][r] = z[n][r] + length * (back[n][r] - pull * z[n][r]);
        if (PROJECTS) project(z);
        store_rows(to, z, D);
    }
}
