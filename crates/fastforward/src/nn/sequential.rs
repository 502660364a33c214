//! Layers one after the other.

use std::fmt;

use mpath::Class;

use super::Layer;
use crate::module::{Module, Visitor, VisitorMut, classes};
use crate::tensor::{Error, Result, Value};

/// Layers one after the other, each a child: named by its place, `0`, `1`, ..., unless it was given a name. It has no slots
/// (spec §5.7).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use fastforward::module::Outline;
/// use fastforward::nn::{Flatten, Layer, Linear, ReLU, Sequential};
///
/// let weights = VarMap::new();
/// let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let model = Sequential::new()
///     .add(Flatten::default())
///     .add(Linear::new(6, 4, false, vb.pp("1"))?)
///     .add(ReLU::new())
///     .add_named("head", Linear::new(4, 2, false, vb.pp("head"))?)?;
/// assert_eq!(
///     Outline::new(&model).to_string(),
///     "Sequential
///   0: Flatten
///   1: Linear
///     weight: f32 [4, 6]
///     input_quantizer: QuantizerStub #activation/input
///     weight_quantizer: QuantizerStub [4, 6] #parameter/weight
///     output_quantizer: QuantizerStub #activation/output
///   2: ReLU
///     input_quantizer: QuantizerStub #activation/input
///     output_quantizer: QuantizerStub #activation/output
///   head: Linear
///     weight: f32 [2, 4]
///     input_quantizer: QuantizerStub #activation/input
///     weight_quantizer: QuantizerStub [2, 4] #parameter/weight
///     output_quantizer: QuantizerStub #activation/output
/// "
/// );
/// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
/// let y = model.forward_tensor(&Tensor::zeros((5, 2, 3), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [5, 2]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// A tuple or a vector of layers becomes one with `into`; for layers made in a loop there is `collect`:
///
/// ```
/// use fastforward::nn::{Identity, Layer, ReLU, Sequential};
/// let pair: Sequential = (ReLU::new(), Identity).into();
/// let many: Sequential = (0..3).map(|_| Box::new(ReLU::new()) as Box<dyn Layer>).collect();
/// assert_eq!((pair.len(), many.len()), (2, 3));
/// ```
#[derive(Default)]
pub struct Sequential {
    layers: Vec<(String, Box<dyn Layer>)>,
}

impl Sequential {
    /// No layers: what comes in goes out.
    pub fn new() -> Self {
        Self::default()
    }

    /// One layer more, named by its place.
    #[expect(
        clippy::should_implement_trait,
        reason = "the name that torch's users know; not a sum"
    )]
    pub fn add(mut self, layer: impl Layer) -> Self {
        self.push(Box::new(layer));
        self
    }

    /// One layer more, with a name.
    ///
    /// # Errors
    /// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the name is empty, taken, has a `.` in it, or is a number other
    /// than the place of the layer.
    pub fn add_named(mut self, name: impl Into<String>, layer: impl Layer) -> Result<Self> {
        let name = name.into();
        let wrong = |what: String| Err(Error::operator("Sequential", what));
        if name.is_empty() || name.contains('.') {
            return wrong(format!(
                "`{name}` is no name for a layer: it is empty, or has a `.` in it"
            ));
        }
        if self.get(&name).is_some() {
            return wrong(format!("there is a layer `{name}` already"));
        }
        let place = self.layers.len();
        if name.bytes().all(|byte| byte.is_ascii_digit()) && name != place.to_string() {
            return wrong(format!(
                "`{name}` would name the layer at place {place}; a number is the name of its place"
            ));
        }
        self.layers.push((name, Box::new(layer)));
        Ok(self)
    }

    /// One layer more, named by its place.
    pub fn push(&mut self, layer: Box<dyn Layer>) {
        self.layers.push((self.layers.len().to_string(), layer));
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The layer of this name.
    pub fn get(&self, name: &str) -> Option<&dyn Layer> {
        self.iter().find(|(other, _)| *other == name).map(|(_, layer)| layer)
    }

    /// The layers with their names, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &dyn Layer)> {
        self.layers.iter().map(|(name, layer)| (name.as_str(), &**layer))
    }
}

impl Module for Sequential {
    fn class(&self) -> Class {
        classes::sequential()
    }

    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        for (name, layer) in &self.layers {
            visitor.module(name, &**layer);
        }
    }

    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        for (name, layer) in &mut self.layers {
            visitor.module(name, &mut **layer);
        }
    }
}

impl Layer for Sequential {
    fn forward(&self, x: &Value) -> Result<Value> {
        self.layers.iter().try_fold(x.clone(), |x, (_, layer)| layer.forward(&x))
    }
}

impl fmt::Debug for Sequential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sequential ")?;
        f.debug_map().entries(self.iter().map(|(name, layer)| (name, layer.class()))).finish()
    }
}

impl From<Vec<Box<dyn Layer>>> for Sequential {
    fn from(layers: Vec<Box<dyn Layer>>) -> Self {
        layers.into_iter().collect()
    }
}

impl FromIterator<Box<dyn Layer>> for Sequential {
    fn from_iter<I: IntoIterator<Item = Box<dyn Layer>>>(layers: I) -> Self {
        let mut all = Self::new();
        layers.into_iter().for_each(|layer| all.push(layer));
        all
    }
}

macro_rules! from_tuples {
    ($(($($layer:ident),+))*) => { $(
        impl<$($layer: Layer),+> From<($($layer,)+)> for Sequential {
            #[expect(non_snake_case, reason = "each layer is named as its type parameter")]
            fn from(($($layer,)+): ($($layer,)+)) -> Self {
                Self::new()$(.add($layer))+
            }
        }
    )* };
}

from_tuples! {
    (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, G) (A, B, C, D, E, G, H)
    (A, B, C, D, E, G, H, I) (A, B, C, D, E, G, H, I, J) (A, B, C, D, E, G, H, I, J, K)
    (A, B, C, D, E, G, H, I, J, K, L) (A, B, C, D, E, G, H, I, J, K, L, M)
}
