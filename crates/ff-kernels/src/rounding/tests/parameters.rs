//! Ranges, scales of inputs, grids and biases.

use super::*;

impl Problem {
    /// Candidates of ranges for the tiles, symmetric or not.
    fn candidates(&self, symmetric: bool) -> (Candidates, RangeOptions) {
        let range = min_max(&self.weight, &self.tiling).unwrap();
        let layout = CandidateLayout::default();
        let candidates = Candidates::new(&range.min, &range.max, symmetric, 40, layout).unwrap();
        (candidates, RangeOptions { symmetric, ..Default::default() })
    }

    fn quantized(&self, parameters: &Parameters) -> Vec<f32> {
        let mut out = vec![0.0; self.weight.len()];
        fake_quantize(&self.weight, &self.tiling, parameters.affine(), self.grid, &mut out)
            .unwrap();
        out
    }

    /// The parameters of chosen candidates.
    fn with(
        &self,
        candidates: &Candidates,
        options: &RangeOptions,
        chosen: &[usize],
    ) -> Parameters {
        let (min, max) = candidates.ranges(chosen).unwrap();
        parameters_for_range(&min, &max, self.grid, options).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn sequential_mse_never_raises_the_loss(seed: u64, symmetric: bool) {
        let problem = Problem::new(seed);
        let Problem { weight, moments, tiling, grid, .. } = &problem;
        let (candidates, options) = problem.candidates(symmetric);
        let choice =
            sequential_mse(weight, moments, tiling, &candidates, *grid, &options).unwrap();
        prop_assert!(choice.loss_after() <= choice.loss_before());
        let quantized = problem.quantized(&choice.parameters);
        let losses = reconstruction_losses(weight, &quantized, moments).unwrap();
        prop_assert_eq!(&losses, &choice.after);
        if tiling.num_tiles() == tiling.grid()[0] {
            // One tile along each row: the choice is the best of all, up to sums in f32.
            let rows = tiling.tile_shape()[0];
            let mut best = vec![f64::INFINITY; tiling.num_tiles()];
            for candidate in 0..candidates.num_candidates() {
                let chosen = vec![candidate; tiling.num_tiles()];
                let parameters = problem.with(&candidates, &options, &chosen);
                let quantized = problem.quantized(&parameters);
                let losses = reconstruction_losses_reference(weight, &quantized, moments).unwrap();
                for (best, losses) in best.iter_mut().zip(losses.chunks(rows)) {
                    *best = best.min(losses.iter().sum());
                }
            }
            for (best, losses) in best.iter().zip(losses.chunks(rows)) {
                let loss: f64 = losses.iter().sum();
                prop_assert!(loss <= best * (1.0 + 1e-4) + 1e-8, "{loss} {best}");
            }
        }
    }

    #[test]
    fn weighted_mse_is_the_best_of_every_tile(seed: u64, symmetric: bool) {
        let problem = Problem::new(seed);
        let Problem { weight, moments, tiling, grid, .. } = &problem;
        let (candidates, options) = problem.candidates(symmetric);
        let choice =
            activation_weighted_mse(weight, moments, tiling, &candidates, *grid, &options).unwrap();
        let n = moments.features();
        let tile_losses = |parameters: &Parameters| -> Vec<f64> {
            let quantized = problem.quantized(parameters);
            let loss = |tile: usize| {
                let term = |at: usize| {
                    let d = f64::from(weight[at]) - f64::from(quantized[at]);
                    moments.gram()[at % n * (n + 1)] * d * d
                };
                tiling.tile_elements(tile).map(|element| term(element.output)).sum()
            };
            (0..tiling.num_tiles()).map(loss).collect()
        };
        let found = tile_losses(&choice.parameters);
        let sum: f64 = found.iter().sum();
        prop_assert!((choice.loss_after() - sum).abs() <= 1e-9 * sum);
        for candidate in 0..candidates.num_candidates() {
            let chosen = vec![candidate; tiling.num_tiles()];
            let losses = tile_losses(&problem.with(&candidates, &options, &chosen));
            for (found, loss) in found.iter().zip(&losses) {
                prop_assert!(*found <= loss * (1.0 + 1e-5) + 1e-9, "{found} {loss}");
            }
        }
    }

    #[test]
    fn awq_never_raises_the_loss(seed: u64, symmetric: bool, clip: bool) {
        let problem = Problem::new(seed);
        let Problem { weight, moments, tiling, grid, .. } = &problem;
        let range = RangeOptions { symmetric, ..Default::default() };
        let clip_candidates = if clip { 20 } else { 0 };
        let options = AwqOptions { steps: 10, clip_candidates };
        let found = awq(weight, moments, tiling, *grid, &range, &options).unwrap();
        prop_assert_eq!(found.curve.len(), 11);
        prop_assert!(found.loss_after() <= found.loss_before());
        // Without scales it is plain rounding in each tile's own range.
        let own = min_max(weight, tiling).unwrap();
        let parameters = parameters_for_range(&own.min, &own.max, *grid, &range).unwrap();
        let plain = problem.quantized(&parameters);
        let plain = reconstruction_losses(weight, &plain, moments).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b + 1e-12;
        prop_assert!(close(found.loss_before(), plain.iter().sum()));
        prop_assert_eq!(found.curve[0], found.loss_before());
        // What was found is what is reported, and the weight lies on its grid.
        let n = moments.features();
        let stands_for: Vec<f32> =
            found.weight.iter().enumerate().map(|(at, w)| w / found.scale[at % n]).collect();
        let losses = reconstruction_losses(weight, &stands_for, moments).unwrap();
        prop_assert_eq!(&losses, &found.after);
        let scaled = Problem { weight: found.weight.clone(), ..Problem::new(seed) };
        prop_assert_eq!(&scaled.quantized(&found.parameters), &found.weight);
        let least = found.curve.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!(clip || found.loss_after() == least);
    }

    #[test]
    fn hqq_never_raises_its_norm(seed: u64, whole_offsets: bool, norm in 0.3f32..1.0) {
        let problem = Problem::new(seed);
        let Problem { weight, tiling, scale, offset, grid, .. } = &problem;
        let options = HqqOptions { whole_offsets, norm, ..Default::default() };
        let found = hqq(weight, tiling, problem.affine(), *grid, &options).unwrap();
        for tile in 0..tiling.num_tiles() {
            prop_assert!(found.after[tile] <= found.before[tile]);
            let came_with = offset.as_ref().map_or(0.0, |offset| offset[tile]);
            let came_with = if whole_offsets { came_with.round_ties_even() } else { came_with };
            for (offset, reported) in
                [(came_with, found.before[tile]), (found.offset[tile], found.after[tile])]
            {
                let mut loss = 0.0;
                for element in tiling.tile_elements(tile) {
                    let w = weight[element.output];
                    let code = (w / scale[tile] - offset).round_ties_even();
                    let code = code.clamp(grid.lo() as f32, grid.hi() as f32);
                    let value = (code + offset) * scale[tile];
                    if offset == found.offset[tile] {
                        prop_assert_eq!(value, found.weight[element.output]);
                    }
                    loss += f64::from((w - value).abs()).powf(norm.into());
                }
                prop_assert!((loss - reported).abs() <= 1e-5 * loss + 1e-9);
            }
        }
        if whole_offsets {
            let affine = Affine { scale, offset: Some(&found.offset) };
            let mut rounded = vec![0.0; weight.len()];
            fake_quantize(weight, tiling, affine, *grid, &mut rounded).unwrap();
            prop_assert_eq!(rounded, found.weight);
        }
    }

    #[test]
    fn bias_correction_leaves_no_mean_error(seed: u64) {
        let problem = Problem::new(seed);
        let Problem { weight, moments, .. } = &problem;
        let nearest = problem.nearest();
        let correction = bias_correction(weight, &nearest, moments).unwrap();
        let n = moments.features();
        for row in 0..correction.bias.len() {
            let (w, q) = (&weight[row * n..][..n], &nearest[row * n..][..n]);
            let (mut mean, mut size) = (0.0, 1.0);
            for j in 0..n {
                size += f64::from(w[j].abs() + q[j].abs()) * moments.mean_abs()[j];
                let shift = moments.shift.as_ref().map_or(0.0, |shift| shift.mean[j]);
                mean += f64::from(w[j]) * (moments.mean()[j] + shift);
                mean -= f64::from(q[j]) * moments.mean()[j];
            }
            prop_assert!((mean - f64::from(correction.bias[row])).abs() < 1e-6 * size);
            prop_assert!(correction.after[row] <= correction.before[row]);
            let gain = correction.before[row] - correction.after[row];
            // Products were summed in f32.
            prop_assert!((gain - mean * mean).abs() < 1e-5 * size * size);
        }
    }
}

#[test]
fn bias_correction_is_measured_on_outputs() {
    // Outputs computed one by one, with and without the correction.
    let mut noise = Noise(8);
    let (rows, n, samples) = (5, 7, 400);
    let float: Vec<f32> = noise.vec(samples * n).iter().map(|x| x + 0.4).collect();
    let fed: Vec<f32> = float.iter().map(|x| (x * 4.0).floor() / 4.0).collect();
    let weight = noise.vec(rows * n);
    let quantized: Vec<f32> = weight.iter().map(|w| (w * 3.0).round() / 3.0).collect();
    let mut sums = MomentSums::new(n);
    sums.add_pair(&fed, &float).unwrap();
    let correction = bias_correction(&weight, &quantized, &sums.finish()).unwrap();
    for row in 0..rows {
        let output = |weight: &[f32], x: &[f32]| -> f64 {
            let pairs = weight[row * n..][..n].iter().zip(x);
            pairs.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let loss = |bias: f32| {
            let errors = float.chunks(n).zip(fed.chunks(n)).map(|(float, fed)| {
                output(&weight, float) - output(&quantized, fed) - f64::from(bias)
            });
            errors.map(|error| error * error).sum::<f64>() / samples as f64
        };
        assert!((loss(0.0) / correction.before[row] - 1.0).abs() < 1e-5);
        assert!((loss(correction.bias[row]) / correction.after[row] - 1.0).abs() < 1e-5);
        assert!(correction.after[row] < 0.9 * correction.before[row]);
    }
}

#[test]
fn awq_finds_the_inputs_that_matter() {
    // Two inputs a hundred times larger than the others, with small weights.
    let mut noise = Noise(5);
    let (rows, n) = (16, 32);
    let loud = |j: usize| if j % 16 == 3 { 100.0 } else { 1.0 };
    let inputs: Vec<f32> = (0..500 * n).map(|at| noise.uniform() * loud(at % n)).collect();
    let weight = noise.vec(rows * n);
    let mut sums = MomentSums::new(n);
    sums.add(&inputs).unwrap();
    let moments = sums.finish();
    let tiling = Tiling::new(&[rows, n], &[1, 16]).unwrap();
    let (grid, range) = (IntegerGrid::signed(3).unwrap(), RangeOptions::default());
    let plain = awq(&weight, &moments, &tiling, grid, &range, &AwqOptions::default()).unwrap();
    assert!(plain.alpha > 0.2 && plain.scale[3] > 2.0 * plain.scale[4]);
    assert!(plain.loss_after() < 0.5 * plain.loss_before());
    let options = AwqOptions { clip_candidates: 20, ..Default::default() };
    let clipped = awq(&weight, &moments, &tiling, grid, &range, &options).unwrap();
    assert_eq!(clipped.curve, plain.curve);
    assert!(clipped.loss_after() < 0.95 * plain.loss_after());
    assert!(
        awq(&weight, &moments, &tiling, grid, &range, &AwqOptions { steps: 0, ..options }).is_err()
    );
}

#[test]
fn options_outside_their_domains_are_refused() {
    let tiling = Tiling::whole(&[2]).unwrap();
    let affine = Affine { scale: &[1.0], offset: None };
    let grid = IntegerGrid::signed(4).unwrap();
    let default = HqqOptions::default();
    let bad = [
        HqqOptions { norm: 0.0, ..default },
        HqqOptions { norm: 1.5, ..default },
        HqqOptions { beta: -1.0, ..default },
        HqqOptions { kappa: 0.5, ..default },
        HqqOptions { kappa: f32::INFINITY, ..default },
    ];
    for options in bad {
        let error = hqq(&[0.0; 2], &tiling, affine, grid, &options).unwrap_err();
        assert!(error.to_string().contains("must be"), "{options:?}");
    }
    assert!(hqq(&[f32::NAN; 2], &tiling, affine, grid, &default).is_err());
    let moments = MomentSums::new(1).finish();
    let candidates =
        Candidates::new(&[0.0; 3], &[1.0; 3], true, 5, CandidateLayout::default()).unwrap();
    let range = RangeOptions::default();
    assert!(sequential_mse(&[0.0; 2], &moments, &tiling, &candidates, grid, &range).is_err());
}
