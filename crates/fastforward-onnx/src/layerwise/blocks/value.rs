//! Numbers with a shape.

/// A value of a block, or a constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f32>,
}

impl Value {
    /// Each number by itself.
    pub(super) fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self { shape: self.shape.clone(), data: self.data.iter().map(|x| f(*x)).collect() }
    }

    /// Bytes of the numbers.
    pub(super) fn bytes(&self) -> usize {
        size_of::<f32>() * self.data.len()
    }

    /// The sum with a value of the same shape, or one that is repeated along leading axes and axes of size 1.
    pub(super) fn plus(&self, other: &Self) -> Result<Self, String> {
        if self.shape == other.shape {
            let data = self.data.iter().zip(&other.data).map(|(a, b)| a + b).collect();
            return Ok(Self { shape: self.shape.clone(), data });
        }
        let rank = self.shape.len();
        let leads = rank.checked_sub(other.shape.len()).filter(|&leads| {
            self.shape[leads..].iter().zip(&other.shape).all(|(a, b)| a == b || *b == 1)
        });
        let Some(leads) = leads else {
            return Err(format!(
                "it adds shapes {:?} and {:?}, expected the same, or a second one that is repeated",
                self.shape, other.shape
            ));
        };
        let mut data = self.data.clone();
        for (at, value) in data.iter_mut().enumerate() {
            let (mut rest, mut index, mut step) = (at, 0, 1);
            for axis in (leads..rank).rev() {
                let extent = other.shape[axis - leads];
                if extent != 1 {
                    index += rest % extent * step;
                }
                rest /= self.shape[axis];
                step *= extent;
            }
            *value += other.data[index];
        }
        Ok(Self { shape: self.shape.clone(), data })
    }
}
