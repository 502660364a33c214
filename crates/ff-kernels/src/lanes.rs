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

    macro_rules! lanes {
        ($set:ty, $t:ty, $register:ty, $count:literal, $splat:ident, $load:ident, $store:ident, $fused:ident) => {
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
        _mm512_fmadd_ps
    );
    lanes!(
        Avx512,
        f64,
        __m512d,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd
    );
    lanes!(
        Avx2,
        f32,
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps
    );
    lanes!(
        Avx2,
        f64,
        __m256d,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd
    );
}
