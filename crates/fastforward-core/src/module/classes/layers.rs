//! The layers, as a table.

use std::sync::LazyLock;

use mpath::Class;

/// A layer and what others call it.
pub(super) struct Layer {
    pub(super) class: fn() -> Class,
    name: &'static str,
    /// The file that PyTorch defines it in, below `torch.nn.modules`; empty if it has none.
    torch_file: &'static str,
    /// PyTorch's names for it.
    torch: &'static [&'static str],
    /// Other spellings of its name.
    spellings: &'static [&'static str],
}

/// Defines functions that return the classes of layers, and the table of them. A row reads: our name, PyTorch's file and
/// names, other spellings. PyTorch's name is ours where none is given.
macro_rules! layers {
    ($(
        $(#[$doc:meta])*
        $function:ident = $name:literal
        $(in $file:literal $([$($torch:literal),+])?)?
        $(also $($spelling:literal),+)?;
    )*) => {
        $(
            $(#[$doc])*
            pub fn $function() -> Class {
                static CLASS: LazyLock<Class> = LazyLock::new(|| {
                    let path = concat!("fastforward::nn::", $name);
                    Class::define($name, path, &[super::quantized_module()])
                });
                *CLASS
            }
        )*

        pub(super) const LAYERS: &[Layer] = &[$(Layer {
            class: $function,
            name: $name,
            torch_file: concat!($($file)?),
            torch: torch_names!($name $(, $file $([$($torch),+])?)?),
            spellings: &[$($($spelling),+)?],
        }),*];
    };
}

macro_rules! torch_names {
    ($name:literal) => {
        &[]
    };
    ($name:literal, $file:literal) => {
        &[$name]
    };
    ($name:literal, $file:literal [$($torch:literal),+]) => {
        &[$($torch),+]
    };
}

layers! {
    /// `y = x Wᵀ + b`.
    linear = "Linear" in "linear";
    /// Convolution over one axis.
    conv1d = "Conv1d" in "conv";
    /// Convolution over two axes.
    conv2d = "Conv2d" in "conv";
    /// Convolution over three axes.
    conv3d = "Conv3d" in "conv";
    /// Transposed convolution over one axis.
    conv_transpose1d = "ConvTranspose1d" in "conv";
    /// Transposed convolution over two axes.
    conv_transpose2d = "ConvTranspose2d" in "conv";
    /// Transposed convolution over three axes.
    conv_transpose3d = "ConvTranspose3d" in "conv";
    /// Rows of a table by their numbers.
    embedding = "Embedding" in "sparse";
    /// Normalization over the last axes.
    layer_norm = "LayerNorm" in "normalization";
    /// Normalization by the root mean square.
    rms_norm = "RmsNorm" in "normalization" ["RMSNorm"];
    /// Normalization of channels by statistics of the training data, over any number of axes.
    batch_norm = "BatchNorm" in "batchnorm" ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"];
    /// Normalization of groups of channels.
    group_norm = "GroupNorm" in "normalization";
    /// `max(x, 0)`.
    relu = "ReLU" in "activation" also "Relu";
    /// `min(max(x, 0), 6)`.
    relu6 = "ReLU6" in "activation" also "Relu6";
    /// Rectifier with a fixed slope below zero.
    leaky_relu = "LeakyReLU" in "activation" also "LeakyRelu";
    /// Rectifier with a learned slope below zero.
    prelu = "PReLU" in "activation" also "PRelu";
    /// `x Φ(x)`.
    gelu = "GELU" in "activation" also "Gelu";
    /// `x σ(x)`.
    silu = "SiLU" in "activation" also "Silu";
    /// `1 / (1 + exp(-x))`.
    sigmoid = "Sigmoid" in "activation";
    /// The hyperbolic tangent.
    tanh = "Tanh" in "activation";
    /// `x relu6(x + 3) / 6`.
    hardswish = "Hardswish" in "activation" also "HardSwish";
    /// `relu6(x + 3) / 6`.
    hardsigmoid = "Hardsigmoid" in "activation" also "HardSigmoid";
    /// `exp(x)` over its sum along an axis.
    softmax = "Softmax" in "activation";
    /// Means of windows over one axis.
    avg_pool1d = "AvgPool1d" in "pooling";
    /// Means of windows over two axes.
    avg_pool2d = "AvgPool2d" in "pooling";
    /// Means of windows over three axes.
    avg_pool3d = "AvgPool3d" in "pooling";
    /// Maxima of windows over one axis.
    max_pool1d = "MaxPool1d" in "pooling";
    /// Maxima of windows over two axes.
    max_pool2d = "MaxPool2d" in "pooling";
    /// Maxima of windows over three axes.
    max_pool3d = "MaxPool3d" in "pooling";
    /// Means of as many windows as asked for, over two axes.
    adaptive_avg_pool2d = "AdaptiveAvgPool2d" in "pooling";
    /// Random zeros while training.
    dropout = "Dropout" in "dropout";
    /// What comes in.
    identity = "Identity" in "linear";
    /// Several axes made one.
    flatten = "Flatten" in "flatten";
    /// Modules one after the other.
    sequential = "Sequential" in "container";
    /// A list of modules: a `Vec` or an array.
    module_list = "ModuleList" in "container";
    /// A map of named modules.
    module_dict = "ModuleDict" in "container";
    /// A list of parameters.
    parameter_list = "ParameterList" in "container";
    /// A map of named parameters.
    parameter_dict = "ParameterDict" in "container";
    /// Scaled dot-product attention by several heads.
    multihead_attention = "MultiheadAttention" in "activation" also "MultiHeadAttention";
    /// The same without projections: what each head does.
    scaled_dot_product_attention = "ScaledDotProductAttention";
    /// Rotation of pairs of features by their position.
    rotary_embedding = "RotaryEmbedding";
}

impl Layer {
    pub(super) fn for_each_name(&self, mut add: impl FnMut(String)) {
        let Layer { torch_file, torch, .. } = *self;
        for name in [self.name].iter().chain(torch).chain(self.spellings) {
            add((*name).to_owned());
            add(format!("fastforward::nn::{name}"));
            add(format!("ff::nn::{name}"));
            add(format!("Quantized{name}"));
            for package in ["ff.nn", "fastforward.nn"] {
                add(format!("{package}.{name}"));
                add(format!("{package}.Quantized{name}"));
                if let Some(file) = self.reference_file() {
                    add(format!("{package}.{file}.Quantized{name}"));
                }
            }
        }
        for name in torch {
            add(format!("torch.nn.{name}"));
            add(format!("nn.{name}"));
            add(format!("torch.nn.modules.{torch_file}.{name}"));
        }
    }

    /// The file that the reference defines layers of this kind in, below `fastforward.nn`.
    fn reference_file(&self) -> Option<&'static str> {
        match self.torch_file {
            "linear" => Some("linear"),
            "conv" => Some("conv"),
            "sparse" => Some("embedding"),
            "normalization" => Some("normalization"),
            "activation" => Some("activations"),
            "container" => Some("container"),
            _ => None,
        }
    }
}
