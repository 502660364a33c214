//! Codes with a shape and strides.

use crate::error::{KernelError, KernelErrorKind, check_len};

/// Eight-bit codes seen as an `N`-dimensional array.
///
/// Narrower grids use the same type: a 4-bit code is an `i8` between -8 and 7. Strides are in
/// elements and may be anything, also zero, which repeats.
///
/// ```
/// use ff_kernels::CodeView;
/// let codes = [1, 2, 3, 4, 5, 6];
/// let rows = CodeView::new(&codes, [2, 3])?;
/// let columns = CodeView::strided(&codes, [3, 2], [1, 3])?; // the transpose
/// assert_eq!((rows.get([1, 0]), columns.get([0, 1])), (4, 4));
/// assert!(CodeView::strided(&codes, [3, 3], [1, 3]).is_err());
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CodeView<'a, const N: usize> {
    codes: &'a [i8],
    shape: [usize; N],
    strides: [usize; N],
}

impl<'a, const N: usize> CodeView<'a, N> {
    /// Codes in C order without gaps.
    ///
    /// # Errors
    /// Another number of codes than the shape has.
    pub fn new(codes: &'a [i8], shape: [usize; N]) -> Result<Self, KernelError> {
        let mut strides = [1; N];
        let mut len = 1usize;
        for axis in (0..N).rev() {
            strides[axis] = len;
            len = len.checked_mul(shape[axis]).ok_or_else(|| too_large(&shape))?;
        }
        check_len("codes", len, codes.len())?;
        Ok(CodeView { codes, shape, strides })
    }

    /// Codes that lie `strides` apart.
    ///
    /// # Errors
    /// A view that reaches past the end of `codes`, or has more elements than `usize` can count.
    pub fn strided(
        codes: &'a [i8],
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self, KernelError> {
        elements(&shape)?;
        let needed = if shape.contains(&0) {
            0
        } else {
            let last = shape.iter().zip(&strides).try_fold(0usize, |last, (&size, &stride)| {
                last.checked_add((size - 1).checked_mul(stride)?)
            });
            last.and_then(|last| last.checked_add(1)).ok_or_else(|| too_large(&shape))?
        };
        if needed > codes.len() {
            return Err(KernelErrorKind::OutOfBounds { needed, found: codes.len() }.into());
        }
        Ok(CodeView { codes, shape, strides })
    }

    /// Extents of the axes.
    pub fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// Steps of the axes, in elements.
    pub fn strides(&self) -> [usize; N] {
        self.strides
    }

    /// The code at `index`.
    ///
    /// # Panics
    /// If the index lies outside of the shape.
    pub fn get(&self, index: [usize; N]) -> i8 {
        let inside = index.iter().zip(&self.shape).all(|(&i, &size)| i < size);
        assert!(inside, "index {index:?} lies outside of the shape {:?}", self.shape);
        self.codes[self.at(index)]
    }

    /// Position of an index that lies inside of the shape.
    #[inline(always)]
    pub(super) fn at(&self, index: [usize; N]) -> usize {
        index.iter().zip(&self.strides).map(|(&i, &stride)| i * stride).sum()
    }

    /// All the memory, of which the view may use only a part.
    pub(super) fn memory(&self) -> &'a [i8] {
        self.codes
    }
}

impl<'a> CodeView<'a, 2> {
    /// The same codes with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let ([rows, columns], [row, column]) = (self.shape, self.strides);
        CodeView { codes: self.codes, shape: [columns, rows], strides: [column, row] }
    }

    /// The codes of `columns` columns from `first` on; both must lie inside.
    pub(super) fn columns(self, first: usize, columns: usize) -> Self {
        debug_assert!(first + columns <= self.shape[1]);
        // An empty view may start past the end of the memory.
        let start = (first * self.strides[1]).min(self.codes.len());
        CodeView { codes: &self.codes[start..], shape: [self.shape[0], columns], ..self }
    }

    /// The codes of `rows` rows from `first` on; both must lie inside.
    pub(super) fn rows(self, first: usize, rows: usize) -> Self {
        self.transposed().columns(first, rows).transposed()
    }
}

impl<'a> CodeView<'a, 3> {
    /// The matrix number `index`, which must lie inside.
    pub(super) fn matrix(self, index: usize) -> CodeView<'a, 2> {
        debug_assert!(index < self.shape[0]);
        let start = (index * self.strides[0]).min(self.codes.len());
        let ([_, rows, columns], [_, row, column]) = (self.shape, self.strides);
        CodeView { codes: &self.codes[start..], shape: [rows, columns], strides: [row, column] }
    }
}

/// The number of elements of a shape.
pub(super) fn elements(shape: &[usize]) -> Result<usize, KernelError> {
    let product = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
    product.ok_or_else(|| too_large(shape))
}

fn too_large(shape: &[usize]) -> KernelError {
    KernelErrorKind::TooLarge { shape: shape.to_vec() }.into()
}
