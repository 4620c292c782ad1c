// What the 32 lanes of a warp do on a GPU. A kernel is compiled from this file, `tiles.cuh`, what its family shares, and
// its own file.
//
// A warp computes one item, an example or two of a toy, and waits for no other warp.
// `tests/kernels/warp.cuh` defines the same names for a CPU, so that tests run the kernels there.

typedef float Number;  // one number of every lane
typedef unsigned Place;
typedef bool Truth;

#define FN __device__ __forceinline__
// unrolled loops, so that arrays stay in registers
#define EVERY(i, N) _Pragma("unroll") for (int i = 0; i < (N); i++)
// the numbers r of N tiles n, see `tiles.cuh`
#define EVERY_NUMBER(n, r, N) EVERY(n, N) EVERY(r, 4)
// the two halves of the rows of a tile, g and g + 8, and the numbers of a half
#define EVERY_HALF(half) _Pragma("unroll") for (int half = 0; half < 4; half += 2)
#define OF_HALF(r, half) _Pragma("unroll") for (int r = half; r < half + 2; r++)
#define ROLLED _Pragma("unroll 1")
#define KERNEL extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
// rows and examples e of this warp: a block takes items that follow each other, so that its warps share weights
#define FOR_EVERY_EXAMPLE(rows, b)                                                            \
    const int share = ((rows) * (b) + gridDim.x - 1) / gridDim.x;                             \
    const int last = min(share * (blockIdx.x + 1), (rows) * (b));                             \
    ROLLED for (int item = share * blockIdx.x + threadIdx.x / 32; item < last; item += WARPS) \
        for (int row = item / (b), e = item % (b), once = 1; once; once = 0)

FN Place lane() { return threadIdx.x % 32; }
FN Number where(Truth condition, Number yes, Number no) { return condition ? yes : no; }
FN Number larger(Number a, Number b) { return fmaxf(a, b); }
FN Number tangent(Number a) { return tanhf(a); }  // hyperbolic
FN Number exponential(Number a) { return expf(a); }
FN Number logarithm(Number a) { return logf(a); }
FN Number root(Number a) { return sqrtf(a); }
FN Number fused(Number a, Number b, Number c) { return fmaf(a, b, c); }
FN Number of_lane(Number a, Place from) { return __shfl_sync(0xffffffff, a, from); }
FN Number beside(Number a, int distance) { return __shfl_xor_sync(0xffffffff, a, distance); }

FN Number load(const float* from, Place i, Truth there) { return there ? from[i] : 0.0f; }
FN void store(float* to, Place i, Number a, Truth there) {
    if (there) to[i] = a;
}
FN void load_two(const float* from, Place i, Number& a, Number& b) {
    const float2 both = *reinterpret_cast<const float2*>(from + i);
    a = both.x;
    b = both.y;
}
FN void store_two(float* to, Place i, Number a, Number b) { *reinterpret_cast<float2*>(to + i) = make_float2(a, b); }
FN void load_four(const float* from, Place i, Number (&w)[4]) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
    w[0] = four.x;
    w[1] = four.y;
    w[2] = four.z;
    w[3] = four.w;
}

// tensor cores of other GPUs were not measured
constexpr bool CUTS_OFF = __CUDA_ARCH__ / 100 == 9;

// a = high + low: high has the 11 leading bits of a, rounded; tensor cores read the 11 leading bits of low
FN void split(Number a, Number& high, Number& low) {
    high = __uint_as_float((__float_as_uint(a) + 0x1000u) & 0xffffe000u);
    low = a - high;
}

// c += a b, of 16 x 8 and 8 x 8 numbers in TF32. A lane has numbers of row lane / 4 of a and of column lane / 4 of b.
FN void multiply(Number (&c)[4], const Number (&a)[4], Number b0, Number b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
