mod parameters;

use proptest::prelude::*;

use super::*;
use crate::*;

/// Reproducible numbers.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// In `-1..1`.
    pub(super) fn uniform(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    pub(super) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform()).collect()
    }
}

/// A random layer with its data.
pub(super) struct Problem {
    pub(super) weight: Vec<f32>,
    pub(super) moments: LayerMoments,
    pub(super) tiling: Tiling,
    pub(super) scale: Vec<f32>,
    pub(super) offset: Option<Vec<f32>>,
    pub(super) grid: IntegerGrid,
}

impl Problem {
    /// Inputs that depend on each other, some always zero; often fewer samples than inputs; every kind of tile.
    pub(super) fn new(seed: u64) -> Self {
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rows = [1, 2, 31, 33, 70][noise.below(5)];
        let (blocks, block) = ([1, 2, 3][noise.below(3)], [1, 2, 7, 16][noise.below(4)]);
        let columns = blocks * block;
        let samples = [1, 3, 40, 300][noise.below(4)];
        let sources = 1 + noise.below(columns);
        let mixing = noise.vec(columns * sources);
        let dead: Vec<bool> = (0..columns).map(|_| noise.below(6) == 0).collect();
        let mut inputs = Vec::new();
        for _ in 0..samples {
            let source = noise.vec(sources);
            for j in 0..columns {
                let mixed: f32 =
                    source.iter().zip(&mixing[j * sources..]).map(|(a, b)| a * b).sum();
                inputs.push(if dead[j] { 0.0 } else { mixed + 0.3 });
            }
        }
        let mut sums = MomentSums::new(columns);
        if noise.below(2) == 0 {
            sums.add(&inputs).unwrap();
        } else {
            let float: Vec<f32> = inputs.iter().map(|x| x + 0.05 * noise.uniform()).collect();
            sums.add_pair(&inputs, &float).unwrap();
        }
        let weight = noise.vec(rows * columns);
        let tile = match noise.below(4) {
            0 => [rows, columns],
            1 => [1, columns],
            2 => [1, block],
            _ => [rows, block],
        };
        let tiling = Tiling::new(&[rows, columns], &tile).unwrap();
        let bits = 2 + noise.below(4) as u32;
        let grid = IntegerGrid::signed(bits).unwrap();
        // Some ranges clip, some are too wide.
        let scale = (0..tiling.num_tiles())
            .map(|_| (noise.uniform() + 1.5) * 0.8 / (1u32 << (bits - 1)) as f32)
            .collect();
        let offset = (noise.below(2) == 0)
            .then(|| (0..tiling.num_tiles()).map(|_| noise.uniform() * 3.0).collect());
        Self { weight, moments: sums.finish(), tiling, scale, offset, grid }
    }

    pub(super) fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, offset: self.offset.as_deref() }
    }

    fn adaround(&self) -> Rounded {
        let options = AdaRoundOptions { iterations: 60, learning_rate: 0.3, ..Default::default() };
        adaround(&self.weight, &self.moments, &self.tiling, self.affine(), self.grid, &options)
            .unwrap()
    }

    fn descend(&self, start: Option<&[f32]>) -> Rounded {
        let Self { weight, moments, tiling, grid, .. } = self;
        coordinate_descent(weight, start, moments, tiling, self.affine(), *grid).unwrap()
    }

    fn nearest(&self) -> Vec<f32> {
        let mut nearest = vec![0.0; self.weight.len()];
        fake_quantize(&self.weight, &self.tiling, self.affine(), self.grid, &mut nearest).unwrap();
        nearest
    }

    /// What holds for every algorithm that chooses codes.
    #[track_caller]
    fn check(&self, rounded: &Rounded) {
        let Self { weight, moments, tiling, grid, .. } = self;
        let mut again = vec![0.0; weight.len()];
        fake_quantize(&rounded.weight, tiling, self.affine(), *grid, &mut again).unwrap();
        assert_eq!(again, rounded.weight, "on the grid");
        let before = reconstruction_losses(weight, &self.nearest(), moments).unwrap();
        assert_eq!(before, rounded.before);
        assert_eq!(reconstruction_losses(weight, &rounded.weight, moments).unwrap(), rounded.after);
        let mut kept = 0;
        for (row, (after, before)) in rounded.after.iter().zip(&before).enumerate() {
            assert!(after <= before, "row {row}: {after} {before}");
            kept += usize::from(after == before);
        }
        assert_eq!(kept, rounded.rows_kept);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn losses_agree_with_plain_sums(seed: u64) {
        let problem = Problem::new(seed);
        let nearest = problem.nearest();
        let Problem { weight, moments, .. } = &problem;
        let fast = reconstruction_losses(weight, &nearest, moments).unwrap();
        let plain = reconstruction_losses_reference(weight, &nearest, moments).unwrap();
        for (fast, plain) in fast.iter().zip(&plain) {
            prop_assert!((fast - plain).abs() <= 1e-12 + 1e-9 * plain, "{fast} {plain}");
        }
    }

    #[test]
    fn adaround_is_on_the_grid_and_never_worse(seed: u64) {
        let problem = Problem::new(seed);
        problem.check(&problem.adaround());
    }

    #[test]
    fn descent_is_on_the_grid_and_never_worse_than_its_start(seed: u64) {
        let problem = Problem::new(seed);
        let descended = problem.descend(None);
        problem.check(&descended);
        let worst: Vec<f32> = problem.weight.iter().map(|w| -w).collect();
        let from_afar = problem.descend(Some(&worst));
        problem.check(&from_afar);
        let adaround = problem.adaround();
        let finished = problem.descend(Some(&adaround.weight));
        problem.check(&finished);
        for (finished, start) in finished.after.iter().zip(&adaround.after) {
            prop_assert!(*finished <= start * (1.0 + 1e-9) + 1e-15);
        }
    }

    #[test]
    fn descent_ends_where_no_single_change_helps(seed: u64) {
        let problem = Problem::new(seed);
        let Problem { weight, moments, tiling, scale, offset, grid } = &problem;
        let rounded = problem.descend(None);
        let columns = moments.features();
        let mut noise = Noise(seed);
        for _ in 0..30 {
            let at = noise.below(weight.len());
            let row = at / columns;
            let tile = tiling.tile_of(&[row, at % columns]);
            let offset = offset.as_ref().map_or(0.0, |o| o[tile].round_ties_even());
            for code in grid.lo()..=grid.hi() {
                let mut changed = rounded.weight.clone();
                changed[at] = (code as f32 + offset) * scale[tile];
                let loss = reconstruction_losses(weight, &changed, moments).unwrap()[row];
                prop_assert!(loss >= rounded.after[row] * (1.0 - 1e-6) - 1e-12);
            }
        }
    }
}

#[test]
fn adaround_comes_close_to_the_best_choice() {
    // Six weights: all 64 ways of rounding each down or up can be tried.
    let (rows, columns) = (40, 6);
    let mut noise = Noise(1);
    let mixing = noise.vec(columns * 3);
    let mut inputs = Vec::new();
    for _ in 0..200 {
        let source = noise.vec(3);
        for j in 0..columns {
            let mixed: f32 = (0..3).map(|k| source[k] * mixing[j * 3 + k]).sum();
            inputs.push(mixed + 0.1 * noise.uniform() + 0.5);
        }
    }
    let mut sums = MomentSums::new(columns);
    sums.add(&inputs).unwrap();
    let moments = sums.finish();
    let weight = noise.vec(rows * columns);
    let tiling = Tiling::whole(&[rows, columns]).unwrap();
    let affine = Affine { scale: &[0.25], offset: None };
    let grid = IntegerGrid::signed(8).unwrap();
    let options = AdaRoundOptions { descent: false, ..Default::default() };
    let rounded = adaround(&weight, &moments, &tiling, affine, grid, &options).unwrap();
    let mut best = vec![f64::INFINITY; rows];
    for choice in 0..1 << columns {
        let up = |at: usize| (choice >> (at % columns) & 1) as f32;
        let tried: Vec<f32> =
            weight.iter().enumerate().map(|(at, w)| ((w / 0.25).floor() + up(at)) * 0.25).collect();
        let losses = reconstruction_losses(&weight, &tried, &moments).unwrap();
        best.iter_mut().zip(losses).for_each(|(best, loss)| *best = best.min(loss));
    }
    let best: f64 = best.iter().sum();
    assert!(rounded.loss_after() >= best * (1.0 - 1e-9));
    assert!(rounded.loss_after() < 1.7 * best, "{} {best}", rounded.loss_after());
    assert!(rounded.loss_before() > 2.5 * best, "{} {best}", rounded.loss_before());
}

#[test]
fn shifted_inputs_are_made_up_for() {
    // The quantized network feeds 1.25 where the float one fed 1: weights a fifth smaller are right.
    let mut sums = MomentSums::new(1);
    sums.add_pair(&[1.25; 4], &[1.0; 4]).unwrap();
    let (weight, moments) = ([1.0, 2.0, -3.0], sums.finish());
    let tiling = Tiling::whole(&[3, 1]).unwrap();
    let affine = Affine { scale: &[0.1], offset: None };
    let grid = IntegerGrid::signed(8).unwrap();
    let rounded = coordinate_descent(&weight, None, &moments, &tiling, affine, grid).unwrap();
    assert_eq!(rounded.weight, [0.8, 1.6, -2.4].map(|w: f32| (w * 10.0).round() * 0.1));
    assert!(rounded.loss_after() < 1e-10 && rounded.loss_before() > 0.1);
}

#[test]
fn any_view_of_a_weight_is_read_as_it_says() {
    let problem = (0..).map(Problem::new).find(|p| p.tiling.grid() == [33, 2]).unwrap();
    let [rows, columns] = [33, problem.moments.features()];
    let expected = problem.adaround();
    // The same weight stored by columns, as the second operand of a matrix product is.
    let mut stored = vec![0.0; problem.weight.len()];
    for at in 0..stored.len() {
        stored[at % columns * rows + at / columns] = problem.weight[at];
    }
    let tiling =
        Tiling::strided(&[rows, columns], &[1, rows], problem.tiling.tile_shape()).unwrap();
    let transposed = Problem { weight: stored, tiling, ..problem };
    assert_eq!(transposed.adaround(), expected);
    // And as a convolution's, with one scale per input channel.
    let tiling = Tiling::new(&[rows, 2, 1, columns / 2], &[1, 1, 1, columns / 2]).unwrap();
    let weight = (0..expected.weight.len())
        .map(|at| transposed.weight[at % columns * rows + at / columns])
        .collect();
    let folded = Problem { weight, tiling, ..transposed };
    assert_eq!(folded.adaround(), expected);
}

#[test]
fn same_bytes_for_any_number_of_threads_and_fused_instructions() {
    let mut noise = Noise(3);
    let (rows, columns) = (200, 50);
    let inputs = noise.vec(600 * columns);
    let float: Vec<f32> = inputs.iter().map(|x| x + 0.01 * noise.uniform()).collect();
    let weight = noise.vec(rows * columns);
    let run = || {
        let mut sums = MomentSums::new(columns);
        sums.add(&inputs).unwrap();
        sums.add_pair(&inputs, &float).unwrap();
        let moments = sums.finish();
        let tiling = Tiling::new(&[rows, columns], &[1, columns]).unwrap();
        let scale = vec![0.2; rows];
        let affine = Affine { scale: &scale, offset: None };
        let grid = IntegerGrid::signed(4).unwrap();
        let options = AdaRoundOptions { iterations: 50, learning_rate: 0.3, ..Default::default() };
        let rounded = adaround(&weight, &moments, &tiling, affine, grid, &options).unwrap();
        (moments, rounded)
    };
    let expected = run();
    assert!(expected.1.rows_kept < rows / 2);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(run), expected, "{threads} threads");
    }
    for level in simd::tests::LEVELS.into_iter().skip(1) {
        let limit = move |_| simd::tests::HIGHEST.set(level);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).start_handler(limit).build();
        assert_eq!(pool.unwrap().install(run), expected, "{level:?}");
    }
}

#[test]
fn empty_weights_are_empty() {
    for shape in [[0, 3], [3, 0], [0, 0]] {
        let moments = MomentSums::new(shape[1]).finish();
        let tiling = Tiling::new(&shape, &shape).unwrap();
        let affine = Affine { scale: &[1.0], offset: None };
        let grid = IntegerGrid::signed(4).unwrap();
        let options = AdaRoundOptions::default();
        let rounded = adaround(&[], &moments, &tiling, affine, grid, &options).unwrap();
        assert_eq!((rounded.weight.len(), rounded.before.len()), (0, shape[0]));
        let rounded = coordinate_descent(&[], None, &moments, &tiling, affine, grid).unwrap();
        assert_eq!(rounded.loss_after(), 0.0);
    }
}

#[test]
fn what_cannot_be_rounded_is_refused() {
    let mut sums = MomentSums::new(2);
    sums.add(&[1.0, 2.0]).unwrap();
    let moments = sums.finish();
    let tiling = Tiling::whole(&[1, 2]).unwrap();
    let affine = Affine { scale: &[1.0], offset: None };
    let grid = IntegerGrid::signed(4).unwrap();
    let run = |weight: &[f32], tiling: &Tiling, options: &AdaRoundOptions| {
        adaround(weight, &moments, tiling, affine, grid, options).unwrap_err().to_string()
    };
    let default = AdaRoundOptions::default();
    let three = Tiling::whole(&[1, 3]).unwrap();
    assert_eq!(run(&[0.0; 3], &three, &default), "inputs of the weight has 3 elements, expected 2");
    assert_eq!(run(&[0.0; 3], &tiling, &default), "input has 3 elements, expected 2");
    assert_eq!(run(&[0.0, f32::NAN], &tiling, &default), "1 values are not finite, at element 1");
    let bad = [
        AdaRoundOptions { iterations: 0, ..default },
        AdaRoundOptions { learning_rate: 0.0, ..default },
        AdaRoundOptions { regularizer: f32::NAN, ..default },
        AdaRoundOptions { beta: (20.0, 0.5), ..default },
        AdaRoundOptions { warm_up: 1.5, ..default },
    ];
    for options in bad {
        assert!(run(&[0.0; 2], &tiling, &options).contains("must be"), "{options:?}");
    }
    let start = coordinate_descent(&[0.0; 2], Some(&[0.0]), &moments, &tiling, affine, grid);
    assert!(start.is_err());
    let nan = [0.0, f32::NAN];
    assert!(coordinate_descent(&[0.0; 2], Some(&nan), &moments, &tiling, affine, grid).is_err());
    assert!(reconstruction_losses(&[0.0; 3], &[0.0; 3], &moments).is_err());
    assert!(reconstruction_losses(&[0.0; 2], &[0.0; 4], &moments).is_err());
}

#[test]
fn gptq_of_the_same_moments_can_be_finished() {
    let mut noise = Noise(11);
    let (rows, n) = (24, 48);
    let mixing = noise.vec(n * 12);
    let mut inputs = Vec::new();
    for _ in 0..400 {
        let source = noise.vec(12);
        for j in 0..n {
            let mixed: f32 = (0..12).map(|k| source[k] * mixing[j * 12 + k]).sum();
            inputs.push(mixed + 0.3 * noise.uniform() + 0.2);
        }
    }
    let mut sums = MomentSums::new(n);
    sums.add(&inputs).unwrap();
    let moments = sums.finish();
    let weight = noise.vec(rows * n);
    let tiling = Tiling::new(&[rows, n], &[1, n]).unwrap();
    let grid = IntegerGrid::signed(3).unwrap();
    let factor =
        HessianFactor::new(&mut moments.hessian().unwrap(), &FactorOptions::default()).unwrap();
    let gptq = gptq(&weight, &tiling, grid, &factor, &GptqOptions::default()).unwrap();
    let losses = reconstruction_losses(&weight, &gptq.weight, &moments).unwrap();
    let loss: f64 = losses.iter().sum();
    assert!((gptq.loss / (2.0 * loss) - 1.0).abs() < 1e-3, "{} {loss}", gptq.loss);
    let affine = gptq.parameters.affine();
    let finished =
        coordinate_descent(&weight, Some(&gptq.weight), &moments, &tiling, affine, grid).unwrap();
    assert!(finished.loss_after() < 0.98 * loss);
}
