// What the 32 lanes of a warp do, on a CPU: one lane after the other. Products are those of tensor cores.
//
// The same names as in `gradbench/systems/kernels/warp.cuh`. `cuts` says whether products lose what those of an
// H100 lose.
#include <cmath>
#include <cstdint>
#include <cstring>

#define FN static inline
#define EVERY(i, N) for (int i = 0; i < (N); i++)
#define EVERY_NUMBER(n, r, N) EVERY(n, N) EVERY(r, 4)
#define EVERY_HALF(half) for (int half = 0; half < 4; half += 2)
#define OF_HALF(r, half) for (int r = half; r < half + 2; r++)
#define ROLLED
#define KERNEL extern "C" void
#define LANES for (int l = 0; l < 32; l++)

template <class T> struct Of {
    T v[32];
    Of() = default;
    Of(T a) { LANES v[l] = a; }
};
typedef Of<float> Number;
typedef Of<int> Place;
typedef Of<bool> Truth;

#define BINARY(T, R, OP) \
    FN Of<R> operator OP(const Of<T>& a, const Of<T>& b) { Of<R> c; LANES c.v[l] = a.v[l] OP b.v[l]; return c; } \
    FN Of<R> operator OP(const Of<T>& a, T b) { return a OP Of<T>(b); } \
    FN Of<R> operator OP(T a, const Of<T>& b) { return Of<T>(a) OP b; }
BINARY(float, float, +) BINARY(float, float, -) BINARY(float, float, *) BINARY(float, float, /)
BINARY(int, int, +) BINARY(int, int, -) BINARY(int, int, *) BINARY(int, int, /) BINARY(int, int, %)
BINARY(int, bool, <) BINARY(int, bool, ==) BINARY(float, bool, >)
FN void operator+=(Number& a, const Number& b) { a = a + b; }
FN void operator-=(Number& a, const Number& b) { a = a - b; }

extern "C" {
int cuts = 0;
}
#define CUTS_OFF cuts
#define FOR_EVERY_EXAMPLE(rows, b) \
    for (int row = 0; row < rows; row++) \
        for (int e = 0; e < (b); e++)

FN Place lane() { Place p; LANES p.v[l] = l; return p; }
FN Number where(Truth condition, Number yes, Number no) { LANES if (condition.v[l]) no.v[l] = yes.v[l]; return no; }
FN Number larger(Number a, Number b) { LANES a.v[l] = std::fmax(a.v[l], b.v[l]); return a; }
FN Number tangent(Number a) { LANES a.v[l] = std::tanh(a.v[l]); return a; }
FN Number exponential(Number a) { LANES a.v[l] = std::exp(a.v[l]); return a; }
FN Number logarithm(Number a) { LANES a.v[l] = std::log(a.v[l]); return a; }
FN Number root(Number a) { LANES a.v[l] = std::sqrt(a.v[l]); return a; }
FN Number fused(Number a, Number b, Number c) { LANES a.v[l] = std::fma(a.v[l], b.v[l], c.v[l]); return a; }
FN Number of_lane(Number a, Place from) { Number c; LANES c.v[l] = a.v[from.v[l]]; return c; }
FN Number beside(Number a, int distance) { Number c; LANES c.v[l] = a.v[l ^ distance]; return c; }

FN Number load(const float* from, Place i, Truth there) {
    Number a;
    LANES a.v[l] = there.v[l] ? from[i.v[l]] : 0.0f;
    return a;
}
FN void store(float* to, Place i, Number a, Truth there) { LANES if (there.v[l]) to[i.v[l]] = a.v[l]; }
FN void load_two(const float* from, Place i, Number& a, Number& b) {
    LANES a.v[l] = from[i.v[l]];
    LANES b.v[l] = from[i.v[l] + 1];
}
FN void store_two(float* to, Place i, Number a, Number b) {
    LANES to[i.v[l]] = a.v[l];
    LANES to[i.v[l] + 1] = b.v[l];
}
FN void load_four(const float* from, Place i, Number (&w)[4]) { LANES for (int r = 0; r < 4; r++) w[r].v[l] = from[i.v[l] + r]; }

FN float bits(float a, uint32_t more, uint32_t which) {
    uint32_t i;
    std::memcpy(&i, &a, 4);
    i = (i + more) & which;
    std::memcpy(&a, &i, 4);
    return a;
}
FN void split(Number a, Number& high, Number& low) {
    LANES high.v[l] = bits(a.v[l], 0x1000u, 0xffffe000u);
    low = a - high;
}

// a sum that is cut off to float32, towards zero
FN float cut(double a) {
    float near = (float)a;
    if (cuts && std::isfinite(near) && std::fabs((double)near) > std::fabs(a)) near = std::nextafterf(near, 0.0f);
    return near;
}

FN void multiply(Number (&c)[4], const Number (&a)[4], Number b0, Number b1) {
    for (int n = 0; n < 8; n++)
        for (int m = 0; m < 16; m++) {
            float& total = c[m / 8 * 2 + n % 2].v[m % 8 * 4 + n / 2];
            double sum = total;
            for (int k = 0; k < 8; k++) {
                const float of_a = a[k / 4 * 2 + m / 8].v[m % 8 * 4 + k % 4], of_b = (k / 4 ? b1 : b0).v[n * 4 + k % 4];
                sum += (double)bits(of_a, 0, 0xffffe000u) * bits(of_b, 0, 0xffffe000u);
            }
            total = cut(sum);
        }
}
