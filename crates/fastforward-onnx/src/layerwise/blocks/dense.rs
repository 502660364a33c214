//! `Y = α X·W + β c` on rows, and its gradients.

use fastforward_core::algorithms::layerwise::transpose;
use ff_kernels::{ConvShape, conv};

use super::value::Value;

/// A product with a constant matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Product {
    /// Whether the matrix is `[outputs, inputs]` and not `[inputs, outputs]`.
    pub(super) transposed: bool,
    /// `α`
    pub(super) alpha: f32,
    /// `β`, for the bias.
    pub(super) beta: f32,
}

impl Product {
    /// The product of all rows of `x`.
    pub(super) fn forward(
        &self,
        x: &Value,
        weight: &Value,
        bias: Option<&Value>,
    ) -> Result<Value, String> {
        let (inputs, outputs) = self.sizes(weight)?;
        let rows = rows_of(x, inputs)?;
        let matrix = self.matrix(weight, inputs, outputs);
        let mut data = multiply(&x.data, &matrix, (rows, inputs, outputs))?;
        if self.alpha != 1.0 {
            data.iter_mut().for_each(|y| *y *= self.alpha);
        }
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        if let Some(bias) = bias {
            let bias = match bias.data.as_slice() {
                [single] => vec![*single; outputs],
                all if all.len() == outputs => all.to_vec(),
                all => return Err(format!("{} biases, expected {outputs}", all.len())),
            };
            for row in data.chunks_mut(outputs.max(1)) {
                row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += self.beta * bias);
            }
        }
        Ok(Value { shape, data })
    }

    /// The gradient of the input.
    pub(super) fn input_gradient(
        &self,
        x: &Value,
        weight: &Value,
        gradient: &[f32],
    ) -> Result<Vec<f32>, String> {
        let (inputs, outputs) = self.sizes(weight)?;
        let rows = rows_of(x, inputs)?;
        let matrix = self.matrix(weight, inputs, outputs);
        let turned = transpose(&matrix, inputs, outputs);
        let mut found = multiply(gradient, &turned, (rows, outputs, inputs))?;
        found.iter_mut().for_each(|x| *x *= self.alpha);
        Ok(found)
    }

    /// The gradient of the matrix, in its own layout.
    pub(super) fn weight_gradient(
        &self,
        x: &Value,
        weight: &Value,
        gradient: &[f32],
    ) -> Result<Vec<f32>, String> {
        let (inputs, outputs) = self.sizes(weight)?;
        let rows = rows_of(x, inputs)?;
        let mut found = match self.transposed {
            true => {
                let turned = transpose(gradient, rows, outputs);
                multiply(&turned, &x.data, (outputs, rows, inputs))?
            }
            false => {
                let turned = transpose(&x.data, rows, inputs);
                multiply(&turned, gradient, (inputs, rows, outputs))?
            }
        };
        found.iter_mut().for_each(|w| *w *= self.alpha);
        Ok(found)
    }

    /// Inputs and outputs.
    fn sizes(&self, weight: &Value) -> Result<(usize, usize), String> {
        match (weight.shape.as_slice(), self.transposed) {
            (&[outputs, inputs], true) | (&[inputs, outputs], false) => Ok((inputs, outputs)),
            (shape, _) => Err(format!("a weight of shape {shape:?} is not one matrix")),
        }
    }

    /// The weight as `[inputs, outputs]`.
    fn matrix(&self, weight: &Value, inputs: usize, outputs: usize) -> Vec<f32> {
        match self.transposed {
            true => transpose(&weight.data, outputs, inputs),
            false => weight.data.clone(),
        }
    }
}

fn rows_of(x: &Value, inputs: usize) -> Result<usize, String> {
    if inputs == 0 || x.shape.last() != Some(&inputs) {
        return Err(format!("its input has shape {:?}, expected [.., {inputs}]", x.shape));
    }
    Ok(x.data.len() / inputs)
}

/// `a·b` with `a` of `[m, k]` and `b` of `[k, n]`: a convolution that looks at one position, whose weight is `a`.
fn multiply(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Result<Vec<f32>, String> {
    let shape = ConvShape {
        batch: 1,
        in_channels: k,
        out_channels: m,
        groups: 1,
        input: [1, 1, n],
        output: [1, 1, n],
        kernel: [1; 3],
        stride: [1; 3],
        dilation: [1; 3],
        padding: [0; 3],
    };
    let mut out = vec![0.0; m * n];
    conv(&shape, b, a, None, &mut out).map_err(|error| error.to_string())?;
    Ok(out)
}
