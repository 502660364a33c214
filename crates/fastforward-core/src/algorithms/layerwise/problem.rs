//! How ranges and codes of one layer are chosen.

use ff_kernels::{
    Affine, CandidateLayout, Candidates, GptqOptions, HessianFactor, IntegerGrid, KernelError,
    LayerMoments, NearestRounding, Parameters, RangeOptions, Tiling, activation_weighted_mse,
    adaround, bias_correction, coordinate_descent, fake_quantize, gptq, gptq_with_parameters,
    min_max, reconstruction_losses, sequential_mse,
};

use super::MatrixTiles;
use crate::config::{Algorithm, LayerInputs};
use crate::quantization::QuantizerSlot;
use crate::quantization::affine::{AffineParameters, LinearQuantizerConfig, SavedQuantizer};
use crate::{Error, ErrorKind};

/// What an algorithm looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// What the layer reads in float.
    Original,
    /// What it reads in the quantized network.
    Quantized,
    /// Both, sample by sample: the layer shall give, for what it reads in the quantized network, what it gives in float.
    Paired,
}

impl Seen {
    /// What this algorithm looks at; `None` for one that looks at no data.
    pub fn of(algorithm: &Algorithm) -> Option<Self> {
        match (algorithm, algorithm.inputs()?) {
            (_, LayerInputs::Original) => Some(Self::Original),
            // Its Hessian has no place for a difference of inputs.
            (Algorithm::Gptq { .. }, LayerInputs::Quantized) => Some(Self::Quantized),
            (_, LayerInputs::Quantized) => Some(Self::Paired),
        }
    }

    /// Bytes of the sums over the inputs of a layer, at their most: while they become moments.
    pub fn moment_bytes(self, columns: usize, groups: usize) -> u64 {
        let matrix = 8 * (columns as u64).pow(2) * groups as u64;
        match self {
            Self::Original | Self::Quantized => 2 * matrix,
            Self::Paired => 5 * matrix,
        }
    }
}

/// One layer whose weight is to be chosen, as matrices: one for each of its groups.
#[derive(Clone, Debug)]
pub struct LayerProblem {
    /// Rows of one group.
    rows: usize,
    columns: usize,
    tile: [usize; 2],
    grid: IntegerGrid,
    range: RangeOptions,
    symmetric: bool,
    /// The weight in float, `[rows · groups, columns]`.
    weight: Vec<f32>,
    /// The weight on its grid, where a method decided each code; rounding to nearest does where none did.
    codes: Option<Vec<f32>>,
    /// One per tile of all groups, in the order of the matrix's tiles.
    scale: Vec<f32>,
    offset: Option<Vec<f32>>,
}

/// What an algorithm did to a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// `E‖W x - Ŵ x^‖²` before.
    pub loss_before: f64,
    /// The same after; never more.
    pub loss: f64,
    /// Output channels that were left as they were.
    pub rows_kept: usize,
}

/// The settings and parameters of the quantizer of a weight.
///
/// # Errors
/// [`ErrorKind::UnsetQuantizer`] without a range, [`ErrorKind::Unsupported`] for one that has no scales that are set before.
pub fn calibrated(
    slot: &QuantizerSlot,
) -> Result<(LinearQuantizerConfig, AffineParameters), Error> {
    match slot.quantizer().to_saved() {
        Some(SavedQuantizer::Linear(config, Some(parameters))) => Ok((config, parameters)),
        Some(SavedQuantizer::Linear(_, None)) => Err(Error::new(
            ErrorKind::UnsetQuantizer,
            "its quantizer has no range; calibrate first",
        )),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            "its quantizer is none with scales that are set before",
        )),
    }
}

/// What is decided for one group.
struct Decision {
    parameters: Option<Parameters>,
    codes: Option<Vec<f32>>,
    rows_kept: usize,
}

impl LayerProblem {
    /// The problem of a weight `[rows · groups, columns]` with a quantizer of these settings and parameters, whose `tiles` lie
    /// on it so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] where sizes do not fit each other, and what is wrong with the grid.
    pub fn new(
        (config, parameters): (&LinearQuantizerConfig, &AffineParameters),
        tiles: &MatrixTiles,
        (groups, columns): (usize, usize),
        weight: Vec<f32>,
    ) -> Result<Self, Error> {
        let rows = weight.len().checked_div(groups * columns).unwrap_or(0);
        let num_tiles = tiles.num_tiles();
        let [tile_rows, tile_columns] = tiles.tile;
        let fits = rows * groups * columns == weight.len()
            && rows > 0
            && tile_rows * tile_columns * num_tiles == weight.len()
            && (tile_rows.is_multiple_of(rows) || rows.is_multiple_of(tile_rows))
            && columns.is_multiple_of(tile_columns)
            && parameters.scale.len() == num_tiles
            && parameters.offset.as_ref().is_none_or(|offset| offset.len() == num_tiles);
        if !fits {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!(
                    "{} weights in {groups} groups of {columns} columns do not fit {num_tiles} tiles of {:?} and {} scales",
                    weight.len(),
                    tiles.tile,
                    parameters.scale.len()
                ),
            ));
        }
        Ok(Self {
            rows,
            columns,
            tile: tiles.tile,
            grid: parameters.grid()?,
            range: config.range.options(),
            symmetric: config.range.symmetric,
            weight,
            codes: None,
            scale: tiles.to_matrix(&parameters.scale),
            offset: parameters.offset.as_deref().map(|offset| tiles.to_matrix(offset)),
        })
    }

    /// The weight on its grid, `[rows · groups, columns]`; `None` where rounding to nearest decides.
    pub fn codes(&self) -> Option<&[f32]> {
        self.codes.as_deref()
    }

    /// The scale of each tile, in the order of the matrix's tiles.
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// The offset of each tile, if there are any.
    pub fn offset(&self) -> Option<&[f32]> {
        self.offset.as_deref()
    }

    /// Lets one algorithm work on the layer; `moments` are those it looks at, of each group.
    ///
    /// What it finds is taken back where the output's error got larger by it. An algorithm of another stage changes nothing.
    ///
    /// # Errors
    /// Moments of another number of inputs, and what the algorithm refuses.
    pub fn apply(
        &mut self,
        algorithm: &Algorithm,
        moments: &[LayerMoments],
    ) -> Result<Step, KernelError> {
        let loss_before = self.loss(moments)?;
        let kept = (self.codes.clone(), self.scale.clone(), self.offset.clone());
        let (mut codes, mut rows_kept) = (Vec::new(), 0);
        for (group, moments) in moments.iter().enumerate() {
            let decision = self.decide(group, algorithm, moments)?;
            rows_kept += decision.rows_kept;
            codes.extend(decision.codes.into_iter().flatten());
            if let Some(parameters) = decision.parameters {
                self.set(group, &parameters);
            }
        }
        self.codes = (codes.len() == self.weight.len()).then_some(codes);
        let mut loss = self.loss(moments)?;
        if loss > loss_before || loss.is_nan() {
            (self.codes, self.scale, self.offset) = kept;
            (loss, rows_kept) = (loss_before, self.weight.len() / self.columns);
        }
        Ok(Step { loss_before, loss, rows_kept })
    }

    /// `E‖W x - Ŵ x^‖²` of the layer as it is decided now.
    ///
    /// # Errors
    /// Moments of another number of inputs.
    pub fn loss(&self, moments: &[LayerMoments]) -> Result<f64, KernelError> {
        let mut sum = 0.0;
        for (group, moments) in moments.iter().enumerate() {
            let rounded = self.rounded(group)?;
            let losses = reconstruction_losses(self.weight_of(group), &rounded, moments)?;
            sum += losses.iter().sum::<f64>();
        }
        Ok(sum)
    }

    /// `E‖W x‖²`: what the loss is a part of.
    ///
    /// # Errors
    /// Moments of another number of inputs.
    pub fn signal(&self, moments: &[LayerMoments]) -> Result<f64, KernelError> {
        let mut sum = 0.0;
        for (group, moments) in moments.iter().enumerate() {
            let weight = self.weight_of(group);
            let losses = reconstruction_losses(weight, &vec![0.0; weight.len()], moments)?;
            sum += losses.iter().sum::<f64>();
        }
        Ok(sum)
    }

    /// What to add to the outputs so that their mean error is taken off: [`bias_correction`] of all groups, with the loss of the
    /// layer before and after.
    ///
    /// # Errors
    /// Moments of another number of inputs.
    pub fn bias_correction(
        &self,
        moments: &[LayerMoments],
    ) -> Result<(Vec<f32>, f64, f64), KernelError> {
        let (mut bias, mut before, mut after) = (Vec::new(), 0.0, 0.0);
        for (group, moments) in moments.iter().enumerate() {
            let rounded = self.rounded(group)?;
            let found = bias_correction(self.weight_of(group), &rounded, moments)?;
            before += found.loss_before();
            after += found.loss_after();
            bias.extend(found.bias);
        }
        Ok((bias, before, after))
    }

    fn decide(
        &self,
        group: usize,
        algorithm: &Algorithm,
        moments: &LayerMoments,
    ) -> Result<Decision, KernelError> {
        let weight = self.weight_of(group);
        let tiling = self.tiling()?;
        let affine = self.affine(group, &tiling);
        // Groups that have a scale in common cannot choose it apart from each other.
        let is_shared = self.tile[0] > self.rows;
        let ranges = |parameters: Parameters| Decision {
            parameters: Some(parameters),
            codes: None,
            rows_kept: 0,
        };
        Ok(match algorithm {
            Algorithm::SequentialMse { .. } | Algorithm::ActivationWeightedMse { .. }
                if is_shared =>
            {
                Decision { parameters: None, codes: None, rows_kept: self.rows }
            }
            Algorithm::SequentialMse { candidates, .. } => {
                let candidates = self.candidates(weight, &tiling, *candidates)?;
                let (grid, range) = (self.grid, &self.range);
                ranges(
                    sequential_mse(weight, moments, &tiling, &candidates, grid, range)?.parameters,
                )
            }
            Algorithm::ActivationWeightedMse { candidates, .. } => {
                let candidates = self.candidates(weight, &tiling, *candidates)?;
                let (grid, range) = (self.grid, &self.range);
                let found =
                    activation_weighted_mse(weight, moments, &tiling, &candidates, grid, range)?;
                ranges(found.parameters)
            }
            Algorithm::Gptq { factor, options, .. } => {
                let mut hessian = moments.hessian()?;
                let factor = HessianFactor::new(&mut hessian, factor)?;
                self.gptq(weight, &tiling, affine, &factor, options)?
            }
            Algorithm::AdaRound { options, .. } => {
                let found = adaround(weight, moments, &tiling, affine, self.grid, options)?;
                Decision { parameters: None, codes: Some(found.weight), rows_kept: found.rows_kept }
            }
            Algorithm::CoordinateDescent { .. } => {
                let start = self.codes.as_ref().map(|codes| self.part(codes, group));
                let found = coordinate_descent(weight, start, moments, &tiling, affine, self.grid)?;
                Decision { parameters: None, codes: Some(found.weight), rows_kept: found.rows_kept }
            }
            Algorithm::Hqq { .. }
            | Algorithm::JoinRanges { .. }
            | Algorithm::Equalize { .. }
            | Algorithm::AbsorbBias { .. }
            | Algorithm::Smooth { .. }
            | Algorithm::Awq { .. }
            | Algorithm::BiasCorrection { .. } => {
                Decision { parameters: None, codes: None, rows_kept: 0 }
            }
        })
    }

    fn gptq(
        &self,
        weight: &[f32],
        tiling: &Tiling,
        affine: Affine<'_>,
        factor: &HessianFactor,
        options: &GptqOptions,
    ) -> Result<Decision, KernelError> {
        let options =
            GptqOptions { range: self.range, nearest: NearestRounding::Guard, ..*options };
        // Scales of blocks follow the corrected weights; those of channels and tensors are as they were set.
        let has_blocks = self.tile[1] > 1 && self.tile[1] < self.columns;
        let is_shared = self.tile[0] > self.rows;
        let found = if has_blocks && !is_shared && !options.static_groups && !factor.act_order() {
            gptq(weight, tiling, self.grid, factor, &options)?
        } else {
            gptq_with_parameters(weight, tiling, affine, self.grid, factor, &options)?
        };
        Ok(Decision {
            parameters: Some(found.parameters),
            codes: Some(found.weight),
            rows_kept: found.nearest_rows,
        })
    }

    fn candidates(
        &self,
        weight: &[f32],
        tiling: &Tiling,
        count: usize,
    ) -> Result<Candidates, KernelError> {
        let range = min_max(weight, tiling)?;
        let layout = match CandidateLayout::default() {
            CandidateLayout::Fitted { smallest, .. } => {
                CandidateLayout::Fitted { smallest, one_sided: self.range.one_sided }
            }
            layout @ CandidateLayout::Reference { .. } => layout,
        };
        Candidates::new(&range.min, &range.max, self.symmetric, count, layout)
    }

    /// The tiles of one group. A tile of all rows of all groups is cut at the groups' ends.
    fn tiling(&self) -> Result<Tiling, KernelError> {
        let tile = [self.tile[0].min(self.rows), self.tile[1]];
        Tiling::new(&[self.rows, self.columns], &tile)
    }

    fn affine(&self, group: usize, tiling: &Tiling) -> Affine<'_> {
        let own = self.parameters_of(group, tiling.num_tiles());
        Affine {
            scale: &self.scale[own.clone()],
            offset: self.offset.as_ref().map(|offset| &offset[own]),
        }
    }

    fn set(&mut self, group: usize, found: &Parameters) {
        let own = self.parameters_of(group, found.scale.len());
        self.scale[own.clone()].copy_from_slice(&found.scale);
        if let Some(offset) = &found.offset {
            let len = self.scale.len();
            self.offset.get_or_insert_with(|| vec![0.0; len])[own].copy_from_slice(offset);
        } else if let Some(offset) = &mut self.offset {
            offset[own].fill(0.0);
        }
    }

    /// Where the parameters of one group's tiles stand.
    fn parameters_of(&self, group: usize, num_tiles: usize) -> std::ops::Range<usize> {
        let across = self.columns / self.tile[1];
        let first = group * self.rows / self.tile[0] * across;
        first..first + num_tiles
    }

    fn part<'v>(&self, values: &'v [f32], group: usize) -> &'v [f32] {
        let len = self.rows * self.columns;
        &values[group * len..][..len]
    }

    fn weight_of(&self, group: usize) -> &[f32] {
        self.part(&self.weight, group)
    }

    /// One group's weight on its grid.
    fn rounded(&self, group: usize) -> Result<Vec<f32>, KernelError> {
        if let Some(codes) = &self.codes {
            return Ok(self.part(codes, group).to_vec());
        }
        let tiling = self.tiling()?;
        let mut out = vec![0.0; self.rows * self.columns];
        let affine = self.affine(group, &tiling);
        fake_quantize(self.weight_of(group), &tiling, affine, self.grid, &mut out)?;
        Ok(out)
    }
}
