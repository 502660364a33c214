//! Run-time choice of the instruction set.
//!
//! A kernel is written once, as a plain loop inside [`Vectorized::run`] with everything it calls
//! marked `#[inline(always)]`. [`dispatch`] calls it from a function compiled for AVX-512 or AVX2
//! where the machine has them, so the compiler vectorises the same loop for each; elsewhere it
//! runs as compiled for the target (which on aarch64 includes NEON). No instruction set changes a
//! result: the loops use only operations that IEEE 754 defines exactly, and multiplications and
//! additions are fused only where the code says so.

/// A loop to be compiled for several instruction sets.
pub trait Vectorized {
    /// What the loop returns.
    type Output;
    /// Runs the loop. Must be `#[inline(always)]`, as everything hot that it calls.
    fn run(self) -> Self::Output;
}

/// Instruction sets, the widest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the crate was compiled for.
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The widest instruction set that may be used.
pub(crate) fn level() -> Level {
    let level = detect();
    #[cfg(test)]
    let level = level.min(tests::HIGHEST.get());
    level
}

/// The widest instruction set that this machine has.
fn detect() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2") {
            let wide = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            return if wide { Level::Avx512 } else { Level::Avx2 };
        }
    }
    Level::Plain
}

/// Whether [`dispatch`]ed code does `f32::mul_add` in one instruction; elsewhere it is a library call.
pub(crate) fn fuses() -> bool {
    cfg!(any(target_arch = "aarch64", target_feature = "fma")) || level() > Level::Plain
}

/// Runs `kernel` with the widest instruction set that this machine has.
pub fn dispatch<K: Vectorized>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2")]
    fn avx512<K: Vectorized>(kernel: K) -> K::Output {
        kernel.run()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
    fn avx2<K: Vectorized>(kernel: K) -> K::Output {
        kernel.run()
    }

    match level() {
        Level::Plain => kernel.run(),
        // SAFETY: `detect` returns this level, or a higher one, only where every feature that the
        // function enables was found.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(kernel) },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::*;

    #[cfg(target_arch = "x86_64")]
    pub(crate) const LEVELS: [Level; 3] = [Level::Plain, Level::Avx2, Level::Avx512];
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) const LEVELS: [Level; 1] = [Level::Plain];

    thread_local! {
        /// The highest level that this thread may use.
        pub(crate) static HIGHEST: Cell<Level> = const { Cell::new(LEVELS[LEVELS.len() - 1]) };
    }

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        let (rows, columns) = (48, 80);
        let mut x: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 7919) % 1009) as f32 / 63.0 - 8.0).collect();
        x[77] = f32::INFINITY;
        x[1077] = -1e30;
        x[2077] = 1e-41;
        let g: Vec<f32> = x.iter().rev().map(|x| x.clamp(-9.0, 9.0) * 0.25).collect();
        let grid = IntegerGrid::signed(4).unwrap();
        let run = |tile: [usize; 2], strides: [usize; 2]| {
            let tiling = Tiling::strided(&[rows, columns], &strides, &tile).unwrap();
            let n = tiling.num_tiles();
            let scale: Vec<f32> = (0..n).map(|i| 0.25 + (i % 13) as f32 * 0.125).collect();
            let offset: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.3).collect();
            let affine = Affine { scale: &scale, offset: Some(&offset) };
            let zero_point: Vec<i32> = (0..n).map(|i| (i % 7) as i32).collect();
            let linear = LinearParameters { scale: &scale, zero_point: Some(&zero_point) };
            let mut bytes: Vec<u32> = Vec::new();
            let mut floats = vec![0.0; x.len()];
            let mut codes = vec![0i8; x.len()];
            let mut keep = |values: &[f32]| bytes.extend(values.iter().map(|v| v.to_bits()));
            fake_quantize(&x, &tiling, affine, grid, &mut floats).unwrap();
            keep(&floats);
            let grads = fake_quantize_backward(&x, &tiling, affine, grid, &g, &mut floats).unwrap();
            keep(&floats);
            keep(&grads.scale);
            keep(&grads.offset.unwrap());
            let range = min_max(&x, &tiling).unwrap();
            keep(&range.min);
            keep(&range.max);
            let finite: Vec<f32> = x.iter().map(|x| x.clamp(-20.0, 20.0)).collect();
            for m in moments(&finite, &tiling).unwrap() {
                keep(&[m.sum as f32, m.sum_squared as f32]);
            }
            quantize(&x, &tiling, affine, grid, &mut codes).unwrap();
            dequantize(&codes, &tiling, affine, &mut floats).unwrap();
            keep(&floats);
            let mut packed = vec![0; codes.len() / 2];
            pack(&codes, Packed::Int4, &mut packed).unwrap();
            unpack(&packed, Packed::Int4, &mut codes).unwrap();
            let mut fused = vec![0; codes.len() / 2];
            quantize_packed(&x, &tiling, affine, grid, Packed::Int4, &mut fused).unwrap();
            assert_eq!(fused, packed);
            let plain = Tiling::new(&[rows, columns], &tile).unwrap();
            dequantize_packed(&fused, Packed::Int4, &plain, affine, &mut floats).unwrap();
            keep(&floats);
            quantize_linear(&x, &tiling, linear, (-128, 127), &mut codes).unwrap();
            dequantize_linear(&codes, &tiling, linear, &mut floats).unwrap();
            keep(&floats);
            bytes.extend(packed.iter().map(|&b| u32::from(b)));
            let range = min_max(&finite, &tiling).unwrap();
            let layout = CandidateLayout::default();
            let candidates = Candidates::new(&range.min, &range.max, true, 9, layout).unwrap();
            let mut errors = vec![0.0; 9 * n];
            let options = RangeOptions::default();
            candidate_errors(&finite, &tiling, &candidates, grid, &options, &mut errors).unwrap();
            bytes.extend(errors.iter().map(|e| (*e as f32).to_bits()));
            let d = Difference::of(&x[80..1000], &g[80..1000]).unwrap();
            bytes.push((d.sum_product as f32).to_bits());
            bytes
        };
        for tile in [[48, 80], [1, 80], [48, 1], [1, 16], [16, 4], [48, 4], [24, 1]] {
            for strides in [[80, 1], [1, 48]] {
                let [first, others @ ..] = LEVELS.map(|level| {
                    let limit = move |_| HIGHEST.set(level);
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).start_handler(limit);
                    pool.build().unwrap().install(|| run(tile, strides))
                });
                assert!(others.iter().all(|other| *other == first), "{tile:?} {strides:?}");
            }
        }
    }
}
