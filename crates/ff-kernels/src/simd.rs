//! Run-time choice of the instruction set.
//!
//! A kernel is written once, as a plain loop inside [`Vectorized::run`] with everything it calls
//! marked `#[inline(always)]`. [`dispatch`] calls it from a function compiled for AVX-512 or AVX2
//! where the machine has them, so the compiler vectorises the same loop for each; elsewhere it
//! runs as compiled for the target (which on aarch64 includes NEON). No instruction set changes a
//! result: the loops use only operations that IEEE 754 defines exactly, and never contract a
//! multiplication and an addition.

/// A loop to be compiled for several instruction sets.
pub(crate) trait Vectorized {
    type Output;
    /// Must be `#[inline(always)]`, as everything hot that it calls.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with the widest instruction set this machine has.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dispatch<K: Vectorized>(kernel: K) -> K::Output {
    use std::arch::is_x86_feature_detected as has;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
    fn avx512<K: Vectorized>(kernel: K) -> K::Output {
        kernel.run()
    }
    #[target_feature(enable = "avx2,bmi1,bmi2")]
    fn avx2<K: Vectorized>(kernel: K) -> K::Output {
        kernel.run()
    }

    let has_avx2 = has!("avx2") && has!("bmi1") && has!("bmi2");
    if has_avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
        // SAFETY: every feature that `avx512` enables was detected on this machine.
        unsafe { avx512(kernel) }
    } else if has_avx2 {
        // SAFETY: every feature that `avx2` enables was detected on this machine.
        unsafe { avx2(kernel) }
    } else {
        kernel.run()
    }
}

/// Runs `kernel` as compiled for the target.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn dispatch<K: Vectorized>(kernel: K) -> K::Output {
    kernel.run()
}
