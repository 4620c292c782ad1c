// s + eps (F(s) - nudge dC/ds - bent); `wide`: numbers from an input of a token to the next one, 0 where all have one
KERNEL step(
    const float* s, float* out, const float* ahead_in, const float* ahead_out, const float* clamped,
    const float* readout, const float* target, const float* nudge, const float* bent, const float* sigma,
    const float* damp, const float* eps, int rows, int cells, int columns, int b, int wide, int of_cell, float scale
) {
    FOR_EVERY_EXAMPLE(rows, (b + 1) / 2) {
        const int c = row % cells;
        const bool both = 2 * e + 1 < b;
        const long long place = (long long)row * b + 2 * e;
        const float strength = sigma[c], length = eps[c], pull = 1 + damp[c];
        Number z[DT][4], back[DT][4];
        load_examples(z, s + place * LENGTH, D, both);
        clear(back);
        add_coupling(back, z, ahead_in + (long long)c * IN * D, ahead_out + (long long)c * D * D, scale);
        scaled(back, strength);
        {
            Number more[DT][4];
            load_examples(more, clamped + (long long)c * of_cell + (long long)e * 16 * wide, wide, both);
            EVERY_NUMBER (n, r, DT) back[n][r] += more[n][r];
        }
        if (nudge) {
            Number slope[DT][4];
            const float* targets = target + ((long long)c * b + 2 * e) * OUTPUTS;
            set_cost_slope(slope, z, readout + (long long)c * LENGTH * OUTPUTS, targets, both);
            const float factor = nudge[row % (columns * cells)];
            EVERY_NUMBER (n, r, DT) back[n][r] -= factor * slope[n][r] / (float)b;
        }
        if (bent) {
            Number more[DT][4];
            load_examples(more, bent + place * LENGTH, D, both);
            EVERY_NUMBER (n, r, DT) back[n][r] -= more[n][r];
        }
        EVERY_NUMBER (n, r, DT) z[n][r] += length * (back[n][r] - pull * z[n][r]);
        store_examples(out + place * LENGTH, z, D, both);
    }
}
