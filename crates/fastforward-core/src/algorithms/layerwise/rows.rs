//! A layer's inputs as rows, added to sums.

use ff_kernels::{KernelError, MomentSums};

use super::Windows;

/// About how many numbers are unfolded at a time.
const CHUNK: usize = 1 << 18;

/// How a layer's input becomes the rows that its weight is multiplied with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputRows {
    /// Rows along the last axis.
    Dense {
        /// Numbers of a row.
        columns: usize,
    },
    /// One row per output position, for each group of channels.
    Windows(Windows),
}

impl InputRows {
    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        match self {
            Self::Dense { columns } => *columns,
            Self::Windows(windows) => windows.channels * windows.kernel.iter().product::<usize>(),
        }
    }

    /// How many products the layer is.
    pub fn groups(&self) -> usize {
        match self {
            Self::Dense { .. } => 1,
            Self::Windows(windows) => windows.groups,
        }
    }

    /// Adds an input of this `shape` to the sums of each group, beside what the float network has in its place where it is
    /// another: `x`, then `float`.
    ///
    /// ```
    /// use fastforward_core::algorithms::layerwise::InputRows;
    /// use ff_kernels::MomentSums;
    /// let mut sums = [MomentSums::new(2)];
    /// InputRows::Dense { columns: 2 }.add(&mut sums, &[1, 2, 2], &[1.0, 2.0, 3.0, 0.0], None)?;
    /// let [sums] = sums;
    /// assert_eq!(sums.finish().mean(), [2.0, 1.0]);
    /// # Ok::<(), String>(())
    /// ```
    ///
    /// # Errors
    /// An input whose shape does not fit; numbers that are not finite.
    pub fn add(
        &self,
        sums: &mut [MomentSums],
        shape: &[usize],
        x: &[f32],
        float: Option<&[f32]>,
    ) -> Result<(), String> {
        let len: usize = shape.iter().product();
        let has_len = |data: &[f32]| data.len() == len;
        let columns = self.columns();
        if columns == 0 || sums.len() != self.groups() {
            let (found, expected) = (sums.len(), self.groups());
            return Err(format!("{found} sums over {columns} inputs, expected {expected}"));
        }
        if !has_len(x) || !float.is_none_or(has_len) {
            return Err(format!("its input has another size than its shape {shape:?}"));
        }
        let push = |sums: &mut MomentSums, rows: &[f32], float: Option<&[f32]>| match float {
            Some(float) => sums.add_pair(rows, float),
            None => sums.add(rows),
        };
        let wrong = |error: KernelError| error.to_string();
        match self {
            Self::Dense { .. } => {
                if shape.last() != Some(&columns) {
                    return Err(format!("its input has shape {shape:?}, expected [.., {columns}]"));
                }
                let chunk = (CHUNK / columns).max(1) * columns;
                let mut pairs = float.map(|float| float.chunks(chunk));
                for rows in x.chunks(chunk) {
                    push(&mut sums[0], rows, pairs.as_mut().and_then(Iterator::next))
                        .map_err(wrong)?;
                }
            }
            Self::Windows(windows) => {
                let unfolding = windows.on(shape)?;
                let chunk = (CHUNK / columns).max(1);
                let (mut rows, mut pairs) = (Vec::new(), Vec::new());
                for (group, sums) in sums.iter_mut().enumerate() {
                    for first in (0..unfolding.count()).step_by(chunk) {
                        let range = first..(first + chunk).min(unfolding.count());
                        unfolding.write(x, group, range.clone(), &mut rows);
                        if let Some(float) = float {
                            unfolding.write(float, group, range, &mut pairs);
                        }
                        push(sums, &rows, float.is_some().then_some(&pairs)).map_err(wrong)?;
                    }
                }
            }
        }
        Ok(())
    }
}
