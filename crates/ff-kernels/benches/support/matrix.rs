//! The data of the benches, and what memory allows.

use ff_kernels::*;

/// Starts as many threads as `FF_BENCH_THREADS` says: one, if it says nothing.
pub(crate) fn start_threads() {
    let threads = std::env::var("FF_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("no pool was started before");
}

pub(crate) const N: usize = 4096;

/// Values like weights: roughly normal, mean 0, deviation 1.
pub(crate) fn data() -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..N * N).map(|_| (next() + next() + next() + next()) * 1.7).collect()
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Tile {
    Tensor,
    Rows,
    Columns,
    Block32,
    Block128,
    Block32Down,
}
impl std::fmt::Display for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl Tile {
    pub(crate) fn tiling(self) -> Tiling {
        let tile = match self {
            Tile::Tensor => [N, N],
            Tile::Rows => [1, N],
            Tile::Columns => [N, 1],
            Tile::Block32 => [1, 32],
            Tile::Block128 => [1, 128],
            Tile::Block32Down => [32, 1],
        };
        Tiling::new(&[N, N], &tile).unwrap()
    }

    pub(crate) fn parameters(self) -> Parameters {
        let n = self.tiling().num_tiles();
        Parameters {
            scale: (0..n).map(|i| 0.02 + (i % 17) as f32 * 0.001).collect(),
            offset: Some((0..n).map(|i| (i % 7) as f32 - 3.0).collect()),
        }
    }
}

pub(crate) fn grid() -> IntegerGrid {
    IntegerGrid::signed(8).unwrap()
}

/// Runs `f` on equal parts, one for each thread, as a copy that uses all of them would.
pub(crate) fn by_thread<T: Send, U: Sync>(
    out: &mut [T],
    x: &[U],
    f: impl Fn(&mut [T], &[U]) + Sync,
) {
    let threads = rayon::current_num_threads();
    let (out, x) = (out.chunks_mut(out.len() / threads), x.chunks(x.len() / threads));
    rayon::scope(|scope| {
        for (out, x) in out.zip(x) {
            scope.spawn(|_| f(out, x));
        }
    });
}

pub(crate) fn copy<T: Copy + Send + Sync>(out: &mut [T], x: &[T]) {
    by_thread(out, x, |out, x| out.copy_from_slice(x));
}

/// Reads 64 MiB, at whatever rate the memory has.
pub(crate) fn read(x: &[f32]) -> u32 {
    let mut found = vec![0; rayon::current_num_threads()];
    by_thread(&mut found, x, |found, x| {
        let mut sums = [0u32; 64];
        for chunk in x.as_chunks::<64>().0 {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum ^= x.to_bits();
            }
        }
        found[0] = sums.iter().fold(0, |a, b| a ^ b);
    });
    found.iter().fold(0, |a, b| a ^ b)
}

/// Activations: 32 batches of `[8, 512, 1024]`.
pub(crate) const BATCHES: usize = 32;
pub(crate) const BATCH: [usize; 3] = [8, 512, 1024];

pub(crate) fn batches() -> Vec<f32> {
    data().iter().copied().cycle().take(BATCHES * BATCH.iter().product::<usize>()).collect()
}
