// What Metal has and the kernels use, for clang's CUDA.
#pragma clang force_cuda_host_device begin
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function) // as drivers do
#define device
#define constant const
#define thread
#define threadgroup
typedef unsigned int uint;
typedef _Float16 half2 __attribute__((ext_vector_type(2)));

static inline uint thread_index_in_threadgroup() { return __nvvm_read_ptx_sreg_tid_x(); }

template <class To, class From> static inline To as_type(From x) { return __builtin_bit_cast(To, x); }

// naga's `static_cast`, which clang has for scalars alone.
template <class To, class From> static inline To cast(From x) {
    if constexpr (__is_scalar(From))
        return static_cast<To>(x);
    else
        return __builtin_convertvector(x, To);
}

namespace metal {
typedef float float2 __attribute__((ext_vector_type(2)));
typedef float float3 __attribute__((ext_vector_type(3)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef uint uint2 __attribute__((ext_vector_type(2)));
typedef uint uint3 __attribute__((ext_vector_type(3)));
typedef uint uint4 __attribute__((ext_vector_type(4)));
typedef int int2 __attribute__((ext_vector_type(2)));
typedef int int3 __attribute__((ext_vector_type(3)));
typedef int int4 __attribute__((ext_vector_type(4)));
typedef int bool4 __attribute__((ext_vector_type(4))); // -1 is true, as comparisons have it

// `float4(x)` puts x everywhere or converts it; with more arguments each is a part. The macros are below.
template <class V> struct make {
    template <class S> static inline V of(S x) {
        if constexpr (__is_scalar(S))
            return (V)(x);
        else
            return cast<V>(x);
    }
    template <class S, class... Rest> static inline V of(S x, Rest... rest) {
        V v;
        int i = 0;
        put(v, i, x);
        (put(v, i, rest), ...);
        return v;
    }
    template <class S> static inline void put(V &v, int &i, S x) {
        if constexpr (__is_scalar(S))
            v[i++] = x;
        else
            for (int j = 0; j < sizeof(x) / sizeof(x[0]); j++)
                v[i++] = x[j];
    }
};
static inline bool4 make_bool4(bool x, bool y, bool z, bool w) { return bool4{-int(x), -int(y), -int(z), -int(w)}; }
static inline bool4 make_bool4(bool x) { return make_bool4(x, x, x, x); }

template <class T> static inline T min(T a, T b) { return __builtin_elementwise_min(a, b); }
template <class T> static inline T max(T a, T b) { return __builtin_elementwise_max(a, b); }
template <class T> static inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T> static inline T abs(T x) { return __builtin_elementwise_abs(x); }
static inline float sqrt(float x) { return __nvvm_sqrt_approx_f(x); }
static inline float4 sqrt(float4 x) { return float4{sqrt(x.x), sqrt(x.y), sqrt(x.z), sqrt(x.w)}; }
static inline float exp(float x) { return __nvvm_ex2_approx_f(x * 1.442695041f); }
static inline float4 exp(float4 x) { return float4{exp(x.x), exp(x.y), exp(x.z), exp(x.w)}; }
static inline float sign(float x) { return x > 0 ? 1.f : x < 0 ? -1.f : 0.f; }
static inline float4 sign(float4 x) { return float4{sign(x.x), sign(x.y), sign(x.z), sign(x.w)}; }
static inline float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
static inline float4 rint(float4 x) { return __builtin_elementwise_rint(x); }
static inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
static inline uint extract_bits(uint x, uint offset, uint bits) { return (x >> offset) & ((1u << bits) - 1u); }
static inline uint4 extract_bits(uint4 x, uint offset, uint bits) { return (x >> offset) & ((1u << bits) - 1u); }
template <class T> static inline T select(T a, T b, bool which) { return which ? b : a; }
template <class T> static inline T select(T a, T b, bool4 which) {
    T v;
    for (int i = 0; i < 4; i++)
        v[i] = which[i] ? b[i] : a[i];
    return v;
}
static inline uint4 select(uint4 a, uint b, bool4 which) { return select(a, uint4{b, b, b, b}, which); }

// A matrix of C columns of R numbers.
template <class Column, int C> struct matrix {
    Column columns[C];
    matrix() = default;
    template <class... Columns> matrix(Columns... c) : columns{c...} {}
    inline Column &operator[](uint i) { return columns[i]; }
    inline const Column &operator[](uint i) const { return columns[i]; }
};
typedef matrix<float4, 4> float4x4;
typedef matrix<float4, 2> float2x4;
typedef matrix<float2, 4> float4x2;
static inline float4 operator*(float4x4 m, float4 v) { return m[0] * v.x + m[1] * v.y + m[2] * v.z + m[3] * v.w; }
static inline float4x4 transpose(float4x4 m) {
    float4x4 t;
    for (int i = 0; i < 4; i++)
        t[i] = float4{m[0][i], m[1][i], m[2][i], m[3][i]};
    return t;
}
static inline float4x2 transpose(float2x4 m) {
    float4x2 t;
    for (int i = 0; i < 4; i++)
        t[i] = float2{m[0][i], m[1][i]};
    return t;
}
static inline float2x4 transpose(float4x2 m) {
    float2x4 t;
    for (int i = 0; i < 2; i++)
        t[i] = float4{m[0][i], m[1][i], m[2][i], m[3][i]};
    return t;
}

enum class mem_flags { mem_threadgroup, mem_device };
enum memory_order { memory_order_relaxed };
static inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
struct atomic_uint { uint value; };
static inline uint atomic_load_explicit(const atomic_uint *a, memory_order) { return __atomic_load_n(&a->value, 0); }
static inline void atomic_store_explicit(atomic_uint *a, uint x, memory_order) { __atomic_store_n(&a->value, x, 0); }
static inline uint atomic_fetch_or_explicit(atomic_uint *a, uint x, memory_order) { return __atomic_fetch_or(&a->value, x, 0); }
static inline uint atomic_fetch_and_explicit(atomic_uint *a, uint x, memory_order) { return __atomic_fetch_and(&a->value, x, 0); }
} // namespace metal
using namespace metal;

static inline metal::uint3 threadgroup_position_in_grid() {
    return metal::uint3{uint(__nvvm_read_ptx_sreg_ctaid_x()), uint(__nvvm_read_ptx_sreg_ctaid_y()), uint(__nvvm_read_ptx_sreg_ctaid_z())};
}
static inline metal::uint3 threadgroups_per_grid() {
    return metal::uint3{uint(__nvvm_read_ptx_sreg_nctaid_x()), uint(__nvvm_read_ptx_sreg_nctaid_y()), uint(__nvvm_read_ptx_sreg_nctaid_z())};
}
#define float2(...) make<metal::float2>::of(__VA_ARGS__)
#define float4(...) make<metal::float4>::of(__VA_ARGS__)
#define uint2(...) make<metal::uint2>::of(__VA_ARGS__)
#define uint3(...) make<metal::uint3>::of(__VA_ARGS__)
#define uint4(...) make<metal::uint4>::of(__VA_ARGS__)
#define int2(...) make<metal::int2>::of(__VA_ARGS__)
#define int4(...) make<metal::int4>::of(__VA_ARGS__)
#define bool4(...) make_bool4(__VA_ARGS__)
#define static_cast cast
