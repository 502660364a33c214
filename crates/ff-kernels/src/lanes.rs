//! Registers of several numbers, for loops that must keep their sums in registers.
//!
//! [`dispatch`](crate::simd::dispatch) leaves it to the compiler which loop becomes vector instructions. For the inner
//! loop of a matrix product that is too little: whether a tile of sums stays in registers decides about a factor of
//! fifty. Here the registers are named. Multiplications and additions are fused where the machine can, so the last bits of
//! a result depend on the machine, never on the number of threads.

use crate::simd::{Level, level};

/// Numbers that kernels compute with: `f32` and `f64`.
pub trait Real: number::Real {}
impl Real for f32 {}
impl Real for f64 {}

/// A computation in registers of `T`.
pub trait Fused<T> {
    /// What the computation returns.
    type Output;
    /// Runs the computation. Must be `#[inline(always)]`, as everything hot that it calls.
    fn run<L: Lanes<T>>(self, lanes: L) -> Self::Output;
}

/// Operations on the registers of an instruction set; a value of this type is the proof that the machine has it.
pub trait Lanes<T>: Copy {
    /// A register.
    type Register: Copy;
    /// Numbers in a register.
    const COUNT: usize;
    /// All numbers the same.
    fn splat(self, value: T) -> Self::Register;
    /// The first numbers of a slice that is long enough.
    fn load(self, values: &[T]) -> Self::Register;
    /// Writes to the beginning of a slice that is long enough.
    fn store(self, register: Self::Register, out: &mut [T]);
    /// `a · b + c`
    fn multiply_add(
        self,
        a: Self::Register,
        b: Self::Register,
        c: Self::Register,
    ) -> Self::Register;
    /// `a + b`
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// Adds the numbers of a register to those at the beginning of a slice that is long enough.
    fn add_wide(self, register: Self::Register, out: &mut [f64]);
    /// Asks for the memory around an address, which need not be valid, to be brought near.
    #[inline(always)]
    fn prefetch(self, _address: *const T) {}
}

/// The most numbers that a register of any instruction set holds.
pub(crate) const MAX_LANES: usize = 16;

/// Whether there are 32 registers, rather than 16.
pub(crate) fn many_registers() -> bool {
    match level() {
        Level::Plain => false,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => false,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => true,
    }
}

/// Numbers in a register of the widest instruction set that [`dispatch_fused`] uses.
pub(crate) fn count<T: Real>() -> usize {
    struct Count;
    impl<T: Real> Fused<T> for Count {
        type Output = usize;

        #[inline(always)]
        fn run<L: Lanes<T>>(self, _lanes: L) -> usize {
            L::COUNT
        }
    }
    dispatch_fused::<T, _>(Count)
}

/// Runs `kernel` on the widest registers that this machine has.
pub(crate) fn dispatch_fused<T: Real, K: Fused<T>>(kernel: K) -> K::Output {
    T::dispatch(kernel)
}

pub(crate) mod number {
    use std::ops::{Add, AddAssign, Mul};

    use super::Fused;

    /// What kernels need of a number.
    pub trait Real:
        Copy
        + Default
        + Send
        + Sync
        + PartialOrd
        + Add<Output = Self>
        + Mul<Output = Self>
        + AddAssign
        + 'static
    {
        /// Less than every other number.
        const LOWEST: Self;
        /// 1
        const UNIT: Self;
        /// `self / count`
        fn over(self, count: usize) -> Self;
        /// Whether this is no number.
        fn is_nan(self) -> bool;
        /// The number in double precision.
        fn widen(self) -> f64;
        /// Runs `kernel` on the widest registers that this machine has.
        fn dispatch<K: Fused<Self>>(kernel: K) -> K::Output;
    }
}

macro_rules! real {
    ($t:ty) => {
        impl number::Real for $t {
            const LOWEST: $t = <$t>::NEG_INFINITY;
            const UNIT: $t = 1.0;

            #[inline(always)]
            fn over(self, count: usize) -> $t {
                self / count as $t
            }

            #[inline(always)]
            fn is_nan(self) -> bool {
                self.is_nan()
            }

            #[inline(always)]
            fn widen(self) -> f64 {
                f64::from(self)
            }

            fn dispatch<K: Fused<$t>>(kernel: K) -> K::Output {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,fma")]
                fn avx512<K: Fused<$t>>(kernel: K, lanes: x86::Avx512) -> K::Output {
                    kernel.run(lanes)
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,bmi1,bmi2,fma")]
                fn avx2<K: Fused<$t>>(kernel: K, lanes: x86::Avx2) -> K::Output {
                    kernel.run(lanes)
                }

                #[cfg(target_arch = "x86_64")]
                {
                    if let Some(lanes) = x86::Avx512::detect() {
                        // SAFETY: the value is the proof that every feature is there.
                        return unsafe { avx512(kernel, lanes) };
                    }
                    if let Some(lanes) = x86::Avx2::detect() {
                        // SAFETY: as above.
                        return unsafe { avx2(kernel, lanes) };
                    }
                }
                kernel.run(Plain)
            }
        }
    };
}
real!(f32);
real!(f64);

/// What the crate was compiled for: short arrays, which the compiler turns into what registers there are.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

macro_rules! plain {
    ($t:ty, $count:literal) => {
        impl Lanes<$t> for Plain {
            type Register = [$t; $count];
            const COUNT: usize = $count;

            #[inline(always)]
            fn splat(self, value: $t) -> [$t; $count] {
                [value; $count]
            }

            #[inline(always)]
            fn load(self, values: &[$t]) -> [$t; $count] {
                *values.first_chunk().expect("the slice is long enough")
            }

            #[inline(always)]
            fn store(self, register: [$t; $count], out: &mut [$t]) {
                *out.first_chunk_mut().expect("the slice is long enough") = register;
            }

            #[inline(always)]
            fn multiply_add(
                self,
                a: [$t; $count],
                b: [$t; $count],
                mut c: [$t; $count],
            ) -> [$t; $count] {
                for ((a, b), c) in a.iter().zip(&b).zip(&mut c) {
                    // Every aarch64 machine fuses; elsewhere a fused operation may be a library call.
                    *c = if cfg!(target_arch = "aarch64") { a.mul_add(*b, *c) } else { a * b + *c };
                }
                c
            }

            #[inline(always)]
            fn add(self, mut a: [$t; $count], b: [$t; $count]) -> [$t; $count] {
                a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
                a
            }

            #[inline(always)]
            fn add_wide(self, register: [$t; $count], out: &mut [f64]) {
                let out: &mut [f64; $count] =
                    out.first_chunk_mut().expect("the slice is long enough");
                out.iter_mut().zip(&register).for_each(|(out, value)| *out += f64::from(*value));
            }
        }
    };
}
plain!(f32, 4);
plain!(f64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected as has;
    use std::arch::x86_64::*;

    use super::Lanes;
    use crate::simd::{Level, level};

    /// AVX-512 with 32 registers of 64 bytes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    /// AVX2 with fused operations: 16 registers of 32 bytes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx512 {
        pub(crate) fn detect() -> Option<Self> {
            (level() >= Level::Avx512 && has!("fma")).then_some(Self(()))
        }
    }

    impl Avx2 {
        pub(crate) fn detect() -> Option<Self> {
            (level() >= Level::Avx2 && has!("fma")).then_some(Self(()))
        }
    }

    /// # Safety
    /// The machine has AVX-512 F and DQ.
    #[inline(always)]
    unsafe fn add_16_floats(register: __m512, out: &mut [f64; 16]) {
        let (low, high) = out.split_at_mut(8);
        let (low, high) = (low.as_mut_ptr(), high.as_mut_ptr());
        // SAFETY: the caller's promise; each pointer is to eight numbers, and any alignment will do.
        unsafe {
            let first = _mm512_cvtps_pd(_mm512_castps512_ps256(register));
            let second = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(register));
            _mm512_storeu_pd(low, _mm512_add_pd(_mm512_loadu_pd(low), first));
            _mm512_storeu_pd(high, _mm512_add_pd(_mm512_loadu_pd(high), second));
        }
    }

    /// # Safety
    /// The machine has AVX-512 F.
    #[inline(always)]
    unsafe fn add_8_doubles(register: __m512d, out: &mut [f64; 8]) {
        let out = out.as_mut_ptr();
        // SAFETY: the caller's promise; the pointer is to eight numbers, and any alignment will do.
        unsafe { _mm512_storeu_pd(out, _mm512_add_pd(_mm512_loadu_pd(out), register)) }
    }

    /// # Safety
    /// The machine has AVX.
    #[inline(always)]
    unsafe fn add_8_floats(register: __m256, out: &mut [f64; 8]) {
        let (low, high) = out.split_at_mut(4);
        let (low, high) = (low.as_mut_ptr(), high.as_mut_ptr());
        // SAFETY: the caller's promise; each pointer is to four numbers, and any alignment will do.
        unsafe {
            let first = _mm256_cvtps_pd(_mm256_castps256_ps128(register));
            let second = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(register));
            _mm256_storeu_pd(low, _mm256_add_pd(_mm256_loadu_pd(low), first));
            _mm256_storeu_pd(high, _mm256_add_pd(_mm256_loadu_pd(high), second));
        }
    }

    /// # Safety
    /// The machine has AVX.
    #[inline(always)]
    unsafe fn add_4_doubles(register: __m256d, out: &mut [f64; 4]) {
        let out = out.as_mut_ptr();
        // SAFETY: the caller's promise; the pointer is to four numbers, and any alignment will do.
        unsafe { _mm256_storeu_pd(out, _mm256_add_pd(_mm256_loadu_pd(out), register)) }
    }

    macro_rules! lanes {
        ($set:ty, $t:ty, $register:ty, $count:literal, $splat:ident, $load:ident, $store:ident, $fused:ident, $add:ident, $add_wide:ident) => {
            impl Lanes<$t> for $set {
                type Register = $register;
                const COUNT: usize = $count;

                #[inline(always)]
                fn splat(self, value: $t) -> $register {
                    // SAFETY: `self` exists only where the instruction set was detected.
                    unsafe { $splat(value) }
                }

                #[inline(always)]
                fn load(self, values: &[$t]) -> $register {
                    let values: &[$t; $count] =
                        values.first_chunk().expect("the slice is long enough");
                    // SAFETY: as above, and the array has as many numbers as the register; any alignment will do.
                    unsafe { $load(values.as_ptr()) }
                }

                #[inline(always)]
                fn store(self, register: $register, out: &mut [$t]) {
                    let out: &mut [$t; $count] =
                        out.first_chunk_mut().expect("the slice is long enough");
                    // SAFETY: as for `load`.
                    unsafe { $store(out.as_mut_ptr(), register) }
                }

                #[inline(always)]
                fn multiply_add(self, a: $register, b: $register, c: $register) -> $register {
                    // SAFETY: as for `splat`.
                    unsafe { $fused(a, b, c) }
                }

                #[inline(always)]
                fn add(self, a: $register, b: $register) -> $register {
                    // SAFETY: as for `splat`.
                    unsafe { $add(a, b) }
                }

                #[inline(always)]
                fn add_wide(self, register: $register, out: &mut [f64]) {
                    let out: &mut [f64; $count] =
                        out.first_chunk_mut().expect("the slice is long enough");
                    // SAFETY: `self` exists only where the instruction set was detected.
                    unsafe { $add_wide(register, out) }
                }

                #[inline(always)]
                fn prefetch(self, address: *const $t) {
                    // SAFETY: every x86-64 machine has the instruction, and it never faults.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
                }
            }
        };
    }

    lanes!(
        Avx512,
        f32,
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        add_16_floats
    );
    lanes!(
        Avx512,
        f64,
        __m512d,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd,
        _mm512_add_pd,
        add_8_doubles
    );
    lanes!(
        Avx2,
        f32,
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        add_8_floats
    );
    lanes!(
        Avx2,
        f64,
        __m256d,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd,
        _mm256_add_pd,
        add_4_doubles
    );
}
