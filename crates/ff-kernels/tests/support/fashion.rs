//! The classifier of `examples/fashion`, on slices: its layers as matrices, and what each layer is fed.
#![allow(missing_docs, unreachable_pub, reason = "tests and an example run this file as a module")]

use std::path::Path;

use ff_kernels::{ConvShape, LayerMoments, MaxPool, MomentSums, conv, max_pool};
use safetensors::SafeTensors;

/// A convolution with batch normalization folded into it, or a linear layer as a convolution of one pixel.
#[derive(Clone)]
pub struct Layer {
    pub name: &'static str,
    /// `[out, in / groups, kernel, kernel]`
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub in_channels: usize,
    pub groups: usize,
    pub kernel: usize,
    pub stride: usize,
}

/// What flows through the network: `[batch, channels, side, side]`.
#[derive(Clone)]
pub struct Maps {
    pub data: Vec<f32>,
    pub batch: usize,
    pub channels: usize,
    pub side: usize,
}

#[derive(Clone)]
pub struct Fashion {
    pub layers: Vec<Layer>,
}

/// A file of `examples/fashion`.
fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/fashion");
    std::fs::read(folder.join(name)).unwrap()
}

/// The first images of a file, and their labels.
pub fn images(name: &str, most: usize) -> (Maps, Vec<u8>) {
    let bytes = read(name);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let images = tensors.tensor("images").unwrap();
    let pixels = images.data().iter().take(most * 28 * 28);
    let data: Vec<f32> = pixels.map(|pixel| f32::from(*pixel) / 255.0).collect();
    let labels = tensors.tensor("labels").unwrap().data().iter().copied().take(most);
    (Maps { batch: data.len() / (28 * 28), data, channels: 1, side: 28 }, labels.collect())
}

impl Layer {
    pub fn out_channels(&self) -> usize {
        self.bias.len()
    }

    fn shape(&self, x: &Maps) -> (ConvShape, usize) {
        let padding = self.kernel / 2;
        let side = (x.side + 2 * padding - self.kernel) / self.stride + 1;
        let shape = ConvShape {
            batch: x.batch,
            in_channels: self.in_channels,
            out_channels: self.out_channels(),
            groups: self.groups,
            input: [1, x.side, x.side],
            output: [1, side, side],
            kernel: [1, self.kernel, self.kernel],
            stride: [1, self.stride, self.stride],
            dilation: [1; 3],
            padding: [0, padding, padding],
        };
        (shape, side)
    }

    fn forward(&self, x: &Maps) -> Maps {
        let (shape, side) = self.shape(x);
        let channels = self.out_channels();
        let mut data = vec![0.0; x.batch * channels * side * side];
        conv(&shape, &x.data, &self.weight, Some(&self.bias), &mut data).unwrap();
        Maps { data, batch: x.batch, channels, side }
    }

    /// Outputs of a group, and the numbers that each is made of.
    pub fn matrix(&self) -> [usize; 2] {
        [self.out_channels() / self.groups, self.weight.len() / self.out_channels()]
    }

    /// The moments of what each group is fed.
    fn moments(&self, x: &Maps) -> Vec<LayerMoments> {
        let group = |group: usize| {
            let mut sums = MomentSums::new(self.matrix()[1]);
            sums.add(&self.unfold(x, group)).unwrap();
            sums.finish()
        };
        (0..self.groups).map(group).collect()
    }

    /// What the rows of the weight of one group are multiplied with: `[samples, in / groups · kernel²]`.
    fn unfold(&self, x: &Maps, group: usize) -> Vec<f32> {
        let (_, side) = self.shape(x);
        let (k, padding) = (self.kernel, self.kernel / 2);
        let channels = self.in_channels / self.groups;
        let mut out = Vec::new();
        for image in 0..x.batch {
            for at in 0..side * side {
                for c in 0..channels {
                    let plane = (image * x.channels + group * channels + c) * x.side * x.side;
                    for tap in 0..k * k {
                        let y = (at / side * self.stride + tap / k).wrapping_sub(padding);
                        let x_ = (at % side * self.stride + tap % k).wrapping_sub(padding);
                        let inside = y < x.side && x_ < x.side;
                        out.push(if inside { x.data[plane + y * x.side + x_] } else { 0.0 });
                    }
                }
            }
        }
        out
    }
}

impl Maps {
    fn relu(mut self, most: f32) -> Self {
        self.data.iter_mut().for_each(|v| *v = v.clamp(0.0, most));
        self
    }

    fn max_pool(self) -> Self {
        let side = self.side / 2;
        let mut data = vec![0.0; self.batch * self.channels * side * side];
        let pool = MaxPool {
            planes: self.batch * self.channels,
            input: [self.side; 2],
            output: [side; 2],
            kernel: [2; 2],
            stride: [2; 2],
            dilation: [1; 2],
            padding: [0; 2],
        };
        max_pool(&pool, &self.data, &mut data).unwrap();
        Maps { data, side, ..self }
    }

    fn mean(self) -> Self {
        let area = self.side * self.side;
        let data = self.data.chunks_exact(area).map(|p| p.iter().sum::<f32>() / area as f32);
        Maps { data: data.collect(), side: 1, ..self }
    }
}

impl Fashion {
    pub fn new() -> Self {
        let bytes = read("fashion_cnn.safetensors");
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let get = |name: &str| -> Vec<f32> {
            let data = tensors.tensor(name).unwrap();
            data.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let block = |name: &'static str, bn: &str, in_channels, kernel, stride, groups| {
            let mut weight = get(&format!("{name}.weight"));
            let part = |part: &str| get(&format!("{bn}.{part}"));
            let (gamma, beta) = (part("weight"), part("bias"));
            let (mean, var) = (part("running_mean"), part("running_var"));
            let row = weight.len() / gamma.len();
            let mut bias = Vec::new();
            for (o, weight) in weight.chunks_exact_mut(row).enumerate() {
                let factor = gamma[o] / (var[o] + 1e-5).sqrt();
                weight.iter_mut().for_each(|w| *w *= factor);
                bias.push(beta[o] - mean[o] * factor);
            }
            Layer { name, weight, bias, in_channels, groups, kernel, stride }
        };
        let linear = |name: &'static str| Layer {
            name,
            weight: get(&format!("{name}.weight")),
            bias: get(&format!("{name}.bias")),
            in_channels: 64,
            groups: 1,
            kernel: 1,
            stride: 1,
        };
        let layers = vec![
            block("conv1", "bn1", 1, 3, 1, 1),
            block("dw", "bn_dw", 16, 3, 1, 16),
            block("pw", "bn_pw", 16, 1, 1, 1),
            block("res1", "bn_r1", 32, 3, 1, 1),
            block("res2", "bn_r2", 32, 3, 1, 1),
            block("conv2", "bn2", 32, 3, 2, 1),
            linear("fc1"),
            linear("fc2"),
        ];
        Self { layers }
    }

    /// The logits; `see` is shown what each layer is fed.
    pub fn forward(&self, x: &Maps, mut see: impl FnMut(usize, &Maps)) -> Maps {
        let mut layer = |at: usize, x: &Maps| {
            see(at, x);
            self.layers[at].forward(x)
        };
        let inf = f32::INFINITY;
        let x = layer(0, x).relu(inf).max_pool();
        let x = layer(1, &x).relu(6.0);
        let x = layer(2, &x).relu(6.0).max_pool();
        let y = layer(3, &x).relu(inf);
        let mut y = layer(4, &y);
        y.data.iter_mut().zip(&x.data).for_each(|(y, x)| *y += x);
        let x = layer(5, &y.relu(inf)).relu(inf).mean();
        let x = layer(6, &x).relu(inf);
        layer(7, &x)
    }

    /// For each layer and group the moments of its inputs.
    pub fn moments(&self, x: &Maps) -> Vec<Vec<LayerMoments>> {
        let mut moments = Vec::new();
        self.forward(x, |at, x| moments.push(self.layers[at].moments(x)));
        moments
    }

    /// The share of images that are classified as their labels say.
    pub fn accuracy(&self, x: &Maps, labels: &[u8]) -> f64 {
        let logits = self.forward(x, |_, _| ());
        let right = logits.data.chunks_exact(10).zip(labels).filter(|(logits, label)| {
            let best = (0..10).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            best == usize::from(**label)
        });
        right.count() as f64 / labels.len() as f64
    }
}
