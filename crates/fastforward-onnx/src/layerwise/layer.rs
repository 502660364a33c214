//! What layer a node is.

use fastforward_core::algorithms::layerwise::{
    InputRows, MatrixTiles, WindowPadding, Windows, transpose,
};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Constant, GraphIndex, Model};
use crate::placement::ConstantFinder;
use crate::proto::NodeProto;
use crate::tree::{Role, Site, Tree};

/// A node that multiplies an activation with a constant weight.
///
/// Seen as `groups` products `Y = X · Wᵀ` with `W` of `[rows / groups, columns]`; a layer without groups is one.
#[derive(Clone, Debug)]
pub struct LinearLayer {
    /// The module's name, `conv1`.
    pub name: String,
    /// The slot of the weight.
    pub weight: Site,
    /// The name of the activation's slot, if the tree has one there.
    pub input: Option<String>,
    /// The value that is multiplied.
    pub value: String,
    /// Output channels of all groups.
    pub rows: usize,
    /// Inputs of one output.
    pub columns: usize,
    /// How many products the layer is.
    pub groups: usize,
    pub(super) form: Form,
    shape: Vec<usize>,
    pub(super) dtype: DType,
}

/// How activations become rows, and the weight a matrix.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Rows along the last axis; the weight is `[columns, rows]` or, transposed, `[rows, columns]`.
    Dense { transposed: bool },
    /// One row per output position; the weight is `[rows, ..]`.
    Windows(Windows),
}

/// A slot of a weight, and why that is no layer's.
pub type NoLayer = (String, String);

/// The layers of a graph whose weights have a quantizer, in the order of the nodes; of the other weights with one, the slot
/// and why its weight is no layer's.
///
/// # Errors
/// `InvalidGraph` for a constant that cannot be understood.
pub fn linear_layers(model: &Model, tree: &Tree) -> Result<(Vec<LinearLayer>, Vec<NoLayer>)> {
    let (mut finder, index) = (ConstantFinder::new(model), model.index());
    let (mut layers, mut others) = (Vec::new(), Vec::new());
    for site in tree.set_sites().filter(|site| site.role == Role::Weight) {
        let (_, constant) = finder.find(site)?;
        match LinearLayer::new(model, tree, site, &constant, &index)? {
            Ok(layer) => layers.push(layer),
            Err(reason) => others.push((site.name.clone(), reason)),
        }
    }
    Ok((layers, others))
}

impl LinearLayer {
    fn new(
        model: &Model,
        tree: &Tree,
        site: &Site,
        constant: &Constant<'_>,
        index: &GraphIndex,
    ) -> Result<std::result::Result<Self, String>> {
        macro_rules! no {
            ($($reason:tt)*) => { return Ok(Err(format!($($reason)*))) };
        }
        if !site.node.graph.is_empty() {
            no!("it stands in a nested graph, whose activations are not seen");
        }
        let Some(node) = model.graph().node.get(site.node.index) else {
            no!("there is no such node; is the tree one of this model?");
        };
        let uses = index.consumers(&site.value);
        if uses.len() != 1 || uses[0].input.is_none() || index.is_output(&site.value) {
            no!("its constant `{}` is read in more than one place", site.value);
        }
        let info = constant.info()?;
        let is_wide = matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64);
        if model.constant(&site.value).is_none() || !is_wide {
            no!("its weight is no constant of floats of 16 bits or more");
        }
        let (dtype, shape) = (info.dtype, info.shape);
        let (form, rows, columns, groups) = match form_of(node, site.position, &shape) {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        };
        let value = node.input_at(0).unwrap_or("").to_owned();
        let input = tree
            .sites()
            .iter()
            .find(|one| one.node == site.node && one.position == 0 && one.role == Role::Input);
        Ok(Ok(Self {
            name: site.name.strip_suffix(".weight_quantizer").unwrap_or(&site.name).to_owned(),
            weight: site.clone(),
            input: input.map(|site| site.name.clone()),
            value,
            rows,
            columns,
            groups,
            form,
            shape,
            dtype,
        }))
    }

    /// Whether another layer multiplies the same rows of the same value.
    pub(crate) fn sees_the_same(&self, other: &Self) -> bool {
        self.value == other.value && self.input_rows() == other.input_rows()
    }

    /// How its input becomes rows.
    pub(super) fn input_rows(&self) -> InputRows {
        match &self.form {
            Form::Dense { .. } => InputRows::Dense { columns: self.columns },
            Form::Windows(windows) => InputRows::Windows(windows.clone()),
        }
    }

    /// The weight's shape in the graph.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The weight as the matrix `[rows, columns]`, groups one after another.
    ///
    /// # Panics
    /// If `weight` has not [`shape`](Self::shape).
    pub fn to_matrix(&self, weight: &[f32]) -> Vec<f32> {
        match self.form {
            Form::Dense { transposed: false } => transpose(weight, self.columns, self.rows),
            _ => weight.to_vec(),
        }
    }

    /// The inverse of [`to_matrix`](Self::to_matrix).
    ///
    /// # Panics
    /// If `matrix` is not `[rows, columns]`.
    pub fn from_matrix(&self, matrix: &[f32]) -> Vec<f32> {
        match self.form {
            Form::Dense { transposed: false } => transpose(matrix, self.rows, self.columns),
            _ => matrix.to_vec(),
        }
    }

    /// How the quantizer's tiles lie on the matrix.
    ///
    /// # Errors
    /// `Quantizer` when they are no tiles there, as a block along the height of a window.
    pub fn tiles(&self, tile: &[usize]) -> Result<MatrixTiles> {
        let is_transposed = matches!(self.form, Form::Dense { transposed: false });
        MatrixTiles::new(&self.shape, tile, is_transposed).ok_or_else(|| {
            Error::new(
                ErrorKind::Quantizer,
                format!(
                    "`{}`: tiles of {tile:?} on a weight of {:?} are no rectangles of output channels and inputs; use per \
                     tensor, per channel, or blocks of input channels",
                    self.weight.name, self.shape
                ),
            )
        })
    }
}

type FormOf = (Form, usize, usize, usize);

fn form_of(
    node: &NodeProto,
    position: usize,
    shape: &[usize],
) -> std::result::Result<FormOf, String> {
    if shape.contains(&0) {
        return Err("its weight is empty".to_owned());
    }
    let dense = |transposed: bool| match *shape {
        [rows, columns] if transposed => Ok((Form::Dense { transposed }, rows, columns, 1)),
        [columns, rows] => Ok((Form::Dense { transposed }, rows, columns, 1)),
        _ => Err(format!("a weight of shape {shape:?} is not one matrix")),
    };
    if position != 1 {
        return Err("the weight is the first operand".to_owned());
    }
    match node.op_type() {
        "MatMul" => dense(false),
        "Gemm" if node.int_or("transA", 0) != 0 => Err("its input is transposed".to_owned()),
        "Gemm" => dense(node.int_or("transB", 0) != 0),
        "Conv" => {
            let groups = node.int_or("group", 1);
            let (&[rows, channels, ref kernel @ ..], true) = (shape, groups > 0) else {
                return Err(format!("a weight of shape {shape:?} is no convolution's"));
            };
            let groups = groups as usize;
            if kernel.is_empty() || !rows.is_multiple_of(groups) {
                return Err(format!("{groups} groups do not divide a weight of shape {shape:?}"));
            }
            let columns = channels * kernel.iter().product::<usize>();
            let windows = windows_of(node, channels, groups, kernel)?;
            Ok((Form::Windows(windows), rows, columns, groups))
        }
        other => Err(format!("a `{other}` is no matrix product")),
    }
}

/// The windows of a `Conv`.
pub(super) fn windows_of(
    node: &NodeProto,
    channels: usize,
    groups: usize,
    kernel: &[usize],
) -> std::result::Result<Windows, String> {
    let rank = kernel.len();
    let list = |name: &str, default: i64, len: usize| -> std::result::Result<Vec<i64>, String> {
        let Some(attribute) = node.find_attribute(name) else { return Ok(vec![default; len]) };
        if attribute.ints.len() != len {
            return Err(format!("`{name}` has {} numbers, expected {len}", attribute.ints.len()));
        }
        Ok(attribute.ints.clone())
    };
    let positive = |name: &str| -> std::result::Result<Vec<usize>, String> {
        let values = list(name, 1, rank)?;
        let all = values.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v > 0)).collect();
        let all: Option<Vec<usize>> = all;
        all.ok_or_else(|| format!("`{name}` is {values:?}, expected positive numbers"))
    };
    let auto =
        node.find_attribute("auto_pad").map(|one| String::from_utf8_lossy(one.s()).into_owned());
    let padding = match auto.as_deref() {
        None | Some("" | "NOTSET") => WindowPadding::Explicit(list("pads", 0, 2 * rank)?),
        Some("VALID") => WindowPadding::Explicit(vec![0; 2 * rank]),
        Some("SAME_UPPER") => WindowPadding::Same { odd_before: false },
        Some("SAME_LOWER") => WindowPadding::Same { odd_before: true },
        Some(other) => return Err(format!("`auto_pad` is `{other}`")),
    };
    Ok(Windows {
        channels,
        groups,
        kernel: kernel.to_vec(),
        strides: positive("strides")?,
        dilations: positive("dilations")?,
        padding,
    })
}
