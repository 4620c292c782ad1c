// out = a W^T of every item: 16 rows of D numbers times 16 rows of weights, in the order of fragments
KERNEL product(const float* a, const float* W, float* out, int rows, int b) {
    FOR_EVERY_EXAMPLE(rows, b) {
        Number z[DT][4], f[2][4];
        load_rows(z, a + e * 16 * D, D);
        read_features<2>(f, z, W + e * 16 * D, 0);
        store_rows(out + e * 256, f, 16);
    }
}
