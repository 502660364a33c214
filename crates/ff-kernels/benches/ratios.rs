//! What memory-bound work costs beside a copy, or a reading, of the same bytes.
//!
//! Each sample is the limit, then the work: where the rate of memory changes from minute to minute, or with what
//! neighbours do, both see the same. Prints a line for each work: its median in milliseconds, that of the limit, the median
//! of their quotients, and the median of the work done again and again with nothing between, which finds what the last cache
//! holds of its data. `FF_BENCH_THREADS=2` sets the threads; words select lines that have one of them.

use std::hint::black_box;
use std::time::Instant;

use ff_kernels::*;
use matrix::{BATCH, N, Tile, batches, copy, data, grid, read, start_threads};

#[path = "support/matrix.rs"]
mod matrix;

fn main() {
    start_threads();
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with("--")).collect();
    let mut table = Table { words };
    let (x, g) = (data(), data());
    let mut buffers = Buffers {
        out: vec![0.0; N * N],
        grad: vec![0.0; N * N],
        codes: vec![0; N * N],
        bytes: vec![0; N * N / 2],
    };
    let limit = |buffers: &mut Buffers| copy(&mut buffers.out, black_box(&x));
    use Tile::*;
    for tile in [Tensor, Rows, Columns, Block128, Block32, Block32Down] {
        let (tiling, p) = (tile.tiling(), tile.parameters());
        let name = format!("fake_quantize/{tile}");
        table.row(&name, 21, 1.0, &mut buffers, limit, |b| {
            fake_quantize(black_box(&x), &tiling, p.affine(), grid(), &mut b.out).unwrap();
        });
    }
    for tile in [Tensor, Rows] {
        let (tiling, p) = (tile.tiling(), tile.parameters());
        // Four bytes are read and one, or half a one, is written, where a copy moves eight.
        let name = format!("quantize_i8/{tile}");
        table.row(&name, 21, 5.0 / 8.0, &mut buffers, limit, |b| {
            quantize(black_box(&x), &tiling, p.affine(), grid(), &mut b.codes).unwrap();
        });
        let grid = IntegerGrid::signed(4).unwrap();
        let name = format!("quantize_int4/{tile}");
        table.row(&name, 21, 4.5 / 8.0, &mut buffers, limit, |b| {
            let x = black_box(&x);
            quantize_packed(x, &tiling, p.affine(), grid, Packed::Int4, &mut b.bytes).unwrap();
        });
    }
    for tile in [Tensor, Rows, Columns] {
        let (tiling, p) = (tile.tiling(), tile.parameters());
        let affine = Affine { scale: &p.scale, offset: None };
        let name = format!("forward_backward/{tile}");
        // Five passes over the data are two and a half copies.
        table.row(&name, 15, 2.5, &mut buffers, limit, |b| {
            fake_quantize(black_box(&x), &tiling, affine, grid(), &mut b.out).unwrap();
            fake_quantize_backward(&x, &tiling, affine, grid(), &g, &mut b.grad).unwrap();
        });
    }
    drop((x, g, buffers));
    let x = batches();
    for (name, tile) in [("tensor", BATCH), ("last_axis", [BATCH[0], BATCH[1], 1])] {
        let tiling = Tiling::new(&BATCH, &tile).unwrap();
        let limit = |_: &mut ()| _ = black_box(read(&x));
        table.row(&format!("min_max/{name}"), 9, 1.0, &mut (), limit, |_| {
            let mut seen = MinMax::empty(tiling.num_tiles());
            for batch in black_box(&x).chunks(tiling.len()) {
                seen.merge(&min_max(batch, &tiling).unwrap()).unwrap();
            }
            black_box(seen);
        });
    }
}

struct Buffers {
    out: Vec<f32>,
    grad: Vec<f32>,
    codes: Vec<i8>,
    bytes: Vec<u8>,
}

struct Table {
    words: Vec<String>,
}

impl Table {
    /// Measures `work` beside `limit`, which is to be done `times` over.
    fn row<T>(
        &mut self,
        name: &str,
        samples: usize,
        times: f64,
        buffer: &mut T,
        mut limit: impl FnMut(&mut T),
        mut work: impl FnMut(&mut T),
    ) {
        if !self.words.is_empty() && !self.words.iter().any(|word| name.contains(word)) {
            return;
        }
        let mut timed = |f: &mut dyn FnMut(&mut T)| {
            let start = Instant::now();
            f(buffer);
            start.elapsed().as_secs_f64() * 1e3
        };
        let (mut limits, mut works, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for sample in 0..=samples {
            let (limit, work) = (times * timed(&mut limit), timed(&mut work));
            // The first is for pages and caches.
            if sample > 0 {
                limits.push(limit);
                works.push(work);
                ratios.push(work / limit);
            }
        }
        let again = (0..=samples).map(|_| timed(&mut work)).collect();
        let [work, limit, ratio, again] = [works, limits, ratios, again].map(median);
        #[expect(clippy::print_stdout, reason = "what a bench is for")]
        {
            println!(
                "{name:24} {work:8.2} ms  limit {limit:8.2} ms  {ratio:5.2}x  again {again:8.2} ms"
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
