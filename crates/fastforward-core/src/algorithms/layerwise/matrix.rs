//! A weight's tiles, seen on the layer's matrix.

/// Tiles of `[rows, columns]` on a layer's matrix, and the order of their parameters there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixTiles {
    /// Rows and columns of a tile.
    pub tile: [usize; 2],
    /// Tiles along the rows and the columns, as the weight in the graph numbers them.
    grid: [usize; 2],
    is_transposed: bool,
}

impl MatrixTiles {
    /// Tiles of `tile` on a weight of `shape`, of which the first axis is the matrix's rows, or its columns where it is
    /// transposed; `None` where they are no rectangles.
    pub fn new(shape: &[usize], tile: &[usize], is_transposed: bool) -> Option<Self> {
        let (&rows, inner) = shape.split_first()?;
        let (&tile_rows, tile_inner) = tile.split_first()?;
        let columns: usize = inner.iter().product();
        // Side by side in row-major order: ones, then at most one part of an axis, then whole axes.
        let first = tile_inner.iter().position(|&extent| extent > 1).unwrap_or(inner.len());
        let whole = |at: usize| tile_inner[at] == inner[at];
        if !(first + 1..inner.len()).all(whole) {
            return None;
        }
        let tile_columns: usize = tile_inner.iter().product();
        let grid = [rows / tile_rows.max(1), columns / tile_columns.max(1)];
        let tile = match is_transposed {
            true => [tile_columns, tile_rows],
            false => [tile_rows, tile_columns],
        };
        Some(Self { tile, grid, is_transposed })
    }

    /// How many tiles there are.
    pub fn num_tiles(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// The parameters in the order of the matrix's tiles.
    pub fn to_matrix(&self, parameters: &[f32]) -> Vec<f32> {
        match self.is_transposed {
            true if parameters.len() > 1 => transpose(parameters, self.grid[0], self.grid[1]),
            _ => parameters.to_vec(),
        }
    }

    /// The parameters in the order of the weight's tiles.
    pub fn from_matrix(&self, parameters: &[f32]) -> Vec<f32> {
        match self.is_transposed {
            true if parameters.len() > 1 => transpose(parameters, self.grid[1], self.grid[0]),
            _ => parameters.to_vec(),
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`.
///
/// # Panics
/// If `matrix` is not `[rows, columns]`.
pub fn transpose<T: Copy>(matrix: &[T], rows: usize, columns: usize) -> Vec<T> {
    assert_eq!(matrix.len(), rows * columns);
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_convolutions_and_of_both_orders_of_a_matrix() {
        let conv = [8, 4, 3, 3];
        let tile = |tile: [usize; 4]| MatrixTiles::new(&conv, &tile, false).map(|one| one.tile);
        assert_eq!(tile([8, 4, 3, 3]), Some([8, 36]));
        assert_eq!(tile([1, 4, 3, 3]), Some([1, 36]));
        assert_eq!(tile([1, 2, 3, 3]), Some([1, 18]));
        assert_eq!(tile([2, 1, 3, 3]), Some([2, 9]));
        assert_eq!(tile([1, 1, 1, 3]), Some([1, 3]));
        assert_eq!(tile([1, 1, 1, 1]), Some([1, 1]));
        assert_eq!(tile([1, 4, 1, 3]), None);
        assert_eq!(tile([1, 2, 3, 1]), None);
        // Per output channel of a `[columns, rows]` weight.
        let tiles = MatrixTiles::new(&[6, 2], &[3, 1], true).unwrap();
        assert_eq!(tiles.tile, [1, 3]);
        // Two tiles down, two across: first all of the upper ones.
        let parameters = [0.0, 1.0, 2.0, 3.0];
        assert_eq!(tiles.to_matrix(&parameters), [0.0, 2.0, 1.0, 3.0]);
        assert_eq!(tiles.from_matrix(&tiles.to_matrix(&parameters)), parameters);
    }
}
