//! Runs one kernel a given number of times, for counting its instructions: `count KERNEL TIMES`.
//!
//! The data is fixed and one thread does all the work, so two runs execute the same instructions, and the difference
//! between two numbers of times is the kernel alone. `scripts/count_instructions.sh` does that.

use ff_kernels::{
    Affine, CandidateLayout, Candidates, IntegerGrid, Packed, RangeOptions, Tiling, fake_quantize,
    fake_quantize_backward, min_max, quantize_packed, search_min_error,
};

/// A matrix of this many rows and columns.
const N: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: count fake_quantize|backward|min_error|quantize_int4 TIMES";
    let mut args = std::env::args().skip(1);
    let (kernel, times) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let times: usize = times.parse().map_err(|_| usage)?;
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;

    let x: Vec<f32> = (0..N * N).map(|i| ((i * 7919) % 10007) as f32 / 1000.0 - 5.0).collect();
    let g: Vec<f32> = x.iter().rev().map(|x| x * 0.125).collect();
    let rows = Tiling::new(&[N, N], &[1, N])?;
    let scale: Vec<f32> = (0..N).map(|i| 0.02 + (i % 17) as f32 * 0.001).collect();
    let affine = Affine { scale: &scale, offset: None };
    let (eight, four) = (IntegerGrid::signed(8)?, IntegerGrid::signed(4)?);
    let range = min_max(&x, &rows)?;
    let layout = CandidateLayout::default();
    let candidates = Candidates::new(&range.min, &range.max, true, 100, layout)?;
    let (mut out, mut bytes) = (vec![0.0f32; N * N], vec![0u8; N * N / 2]);
    for _ in 0..times {
        let x = std::hint::black_box(&x[..]);
        match kernel.as_str() {
            "fake_quantize" => fake_quantize(x, &rows, affine, eight, &mut out)?,
            "backward" => {
                fake_quantize_backward(x, &rows, affine, eight, &g, &mut out)?;
            }
            "min_error" => {
                search_min_error(x, &rows, &candidates, four, &RangeOptions::default())?;
            }
            "quantize_int4" => {
                quantize_packed(x, &rows, affine, four, Packed::Int4, &mut bytes)?;
            }
            _ => return Err(usage.into()),
        }
        std::hint::black_box((&out, &bytes));
    }
    Ok(())
}
