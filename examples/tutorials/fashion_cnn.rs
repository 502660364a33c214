//! A convolutional classifier of clothes, as a model in code: the twin of `examples/fashion/fashion_cnn.onnx`.
#![allow(missing_docs, unreachable_pub, reason = "tests run this file as a module")]
#![allow(dead_code, reason = "each tutorial uses a part")]

use candle_nn::VarBuilder;
use fastforward::Module;
use fastforward::nn::{
    AdaptiveAvgPool2d, Add, BatchNorm, BatchNormOptions, Conv2d, Flatten, Layer, Linear, MaxPool2d,
    ReLU, ReLU6, fold_batch_norm,
};
use fastforward::tensor::float::{self, Conv, Padding};
use fastforward::tensor::{Result, Value};

/// Modules are named as the nodes of the graph, so that the same rules address both.
#[derive(Module)]
pub struct FashionCnn {
    conv1: Conv2d,
    bn1: Option<BatchNorm>,
    relu1: ReLU,
    pool1: MaxPool2d,
    dw: Conv2d,
    bn_dw: Option<BatchNorm>,
    relu6_dw: ReLU6,
    pw: Conv2d,
    bn_pw: Option<BatchNorm>,
    relu6_pw: ReLU6,
    pool2: MaxPool2d,
    res1: Conv2d,
    bn_r1: Option<BatchNorm>,
    relu_r1: ReLU,
    res2: Conv2d,
    bn_r2: Option<BatchNorm>,
    res_add: Add,
    relu_res: ReLU,
    conv2: Conv2d,
    bn2: Option<BatchNorm>,
    relu2: ReLU,
    gap: AdaptiveAvgPool2d,
    flat: Flatten,
    fc1: Linear,
    relu_fc1: ReLU,
    logits: Linear,
}

/// Whether batch normalization is a layer of its own, or part of the convolution before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BatchNorms {
    Kept,
    Folded,
}

impl FashionCnn {
    /// The model with trained weights; `vb` is that of `fashion_cnn.safetensors`.
    pub fn new(vb: &VarBuilder<'_>, batch_norms: BatchNorms) -> Result<Self> {
        // Channels in and out, kernel, stride, groups.
        let block =
            |conv: &str, bn: &str, [c_in, c_out, k, stride, groups]: [usize; 5]| -> Result<_> {
                let padding = Padding::Explicit([k / 2; 2]);
                let options = Conv { stride: [stride; 2], padding, groups, ..Default::default() };
                let conv = Conv2d::new(c_in, c_out, [k, k], options, false, vb.pp(conv))?;
                let bn = BatchNorm::new(c_out, BatchNormOptions::default(), vb.pp(bn))?;
                Ok(match batch_norms {
                    BatchNorms::Kept => (conv, Some(bn)),
                    BatchNorms::Folded => (fold_batch_norm(&conv, &bn)?, None),
                })
            };
        let (conv1, bn1) = block("conv1", "bn1", [1, 16, 3, 1, 1])?;
        let (dw, bn_dw) = block("dw", "bn_dw", [16, 16, 3, 1, 16])?;
        let (pw, bn_pw) = block("pw", "bn_pw", [16, 32, 1, 1, 1])?;
        let (res1, bn_r1) = block("res1", "bn_r1", [32, 32, 3, 1, 1])?;
        let (res2, bn_r2) = block("res2", "bn_r2", [32, 32, 3, 1, 1])?;
        let (conv2, bn2) = block("conv2", "bn2", [32, 64, 3, 2, 1])?;
        Ok(Self {
            conv1,
            bn1,
            relu1: ReLU::new(),
            pool1: MaxPool2d::new(float::MaxPool2d::new([2, 2])),
            dw,
            bn_dw,
            relu6_dw: ReLU6::new(),
            pw,
            bn_pw,
            relu6_pw: ReLU6::new(),
            pool2: MaxPool2d::new(float::MaxPool2d::new([2, 2])),
            res1,
            bn_r1,
            relu_r1: ReLU::new(),
            res2,
            bn_r2,
            res_add: Add::new(),
            relu_res: ReLU::new(),
            conv2,
            bn2,
            relu2: ReLU::new(),
            gap: AdaptiveAvgPool2d::new([Some(1), Some(1)]),
            flat: Flatten::default(),
            fc1: Linear::new(64, 64, true, vb.pp("fc1"))?,
            relu_fc1: ReLU::new(),
            logits: Linear::new(64, 10, true, vb.pp("fc2"))?,
        })
    }
}

impl Layer for FashionCnn {
    /// `[n, 1, 28, 28]` to `[n, 10]`
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = conv(&self.conv1, &self.bn1, x)?;
        let x = self.pool1.forward(&self.relu1.forward(&x)?)?;
        let x = self.relu6_dw.forward(&conv(&self.dw, &self.bn_dw, &x)?)?;
        let x = self.relu6_pw.forward(&conv(&self.pw, &self.bn_pw, &x)?)?;
        let x = self.pool2.forward(&x)?;
        let y = self.relu_r1.forward(&conv(&self.res1, &self.bn_r1, &x)?)?;
        let y = conv(&self.res2, &self.bn_r2, &y)?;
        let x = self.relu_res.forward(&self.res_add.forward(&x, &y)?)?;
        let x = self.relu2.forward(&conv(&self.conv2, &self.bn2, &x)?)?;
        let x = self.flat.forward(&self.gap.forward(&x)?)?;
        let x = self.relu_fc1.forward(&self.fc1.forward(&x)?)?;
        self.logits.forward(&x)
    }
}

fn conv(conv: &Conv2d, bn: &Option<BatchNorm>, x: &Value) -> Result<Value> {
    let x = conv.forward(x)?;
    bn.as_ref().map_or_else(|| Ok(x.clone()), |bn| bn.forward(&x))
}
