// E of every example
KERNEL energy(
    const float* s, float* out, const float* ahead_in, const float* ahead_out, const float* clamped, const float* bias,
    const float* sigma, const float* damp, int rows, int cells, int b, float well, float scale
) {
    FOR_EVERY_EXAMPLE(rows, b) {
        const int c = row % cells;
        const long long place = (long long)row * b + e;
        const float* in = ahead_in + (long long)c * IN * D;
        const float* from = s + place * LENGTH;
        Number back[DT][4], z[DT][4], total = 0.0f;
        load_rows(back, clamped + ((long long)c * b + e) * 16 * D, D);
        {
            Number y[KT][4];
            load_pixels<KT>(y, from + 16 * D, 0);
            add_features<KT>(back, y, ahead_out + (long long)c * OUT * D, 0, OUT);
            EVERY_NUMBER (n, r, KT) {
                const Place j = pixel_of(n, r);
                total += (0.5f * y[n][r] - load(bias + c * CH, j / (PATCH * PATCH), j < AREA)) * y[n][r];
            }
        }
        load_rows(z, from, D);
        const float pull = well + 0.5f * damp[c];
        EVERY_NUMBER (n, r, DT) total += (pull * z[n][r] - back[n][r]) * z[n][r];
        ROLLED for (int first = PIX; first < PIX + M; first += 16) {
            Number memory[2][4];
            read_features<2>(memory, z, in, first);
            EVERY_NUMBER (n, r, 2) {
                const Number open = larger(memory[n][r], 0.0f);
                total -= open * open;
            }
        }
        const float strength = sigma[c] / scale;
        ROLLED for (int head = PIX + M; head < PIX + M + D; head += 16) {
            Number q[2][4], k[2][4], P[2][4];
            read_features<2>(q, z, in, head);
            read_features<2>(k, z, in, head + D);
            set_product(P, q, k);
            EVERY_HALF (r) {
                const Number most = most_of_row(larger(larger(P[0][r], P[0][r + 1]), larger(P[1][r], P[1][r + 1])));
                const Number sum = over_row(
                    exponential(scale * (P[0][r] - most)) + exponential(scale * (P[0][r + 1] - most)) +
                    exponential(scale * (P[1][r] - most)) + exponential(scale * (P[1][r + 1] - most))
                );
                // all four lanes of a row have the same sum
                total -= 0.25f * strength * (scale * most + logarithm(sum));
            }
        }
        store(out + place, lane(), over_warp(total), lane() == 0);
    }
}
