use super::*;

#[test]
fn tiles_and_their_elements_are_in_c_order() {
    let tiling = Tiling::new(&[4, 6], &[2, 3]).unwrap();
    let rows: Vec<Vec<usize>> =
        (0..4).map(|t| tiling.tile_elements(t).map(|e| e.output).collect()).collect();
    assert_eq!(rows[0], [0, 1, 2, 6, 7, 8]);
    assert_eq!(rows[1], [3, 4, 5, 9, 10, 11]);
    assert_eq!(rows[2][0], 12);
    assert_eq!(rows[3][0], 15);
}

#[test]
fn all_mismatches_are_listed() {
    let err = Tiling::new(&[6, 4, 5], &[4, 2, 0]).unwrap_err();
    let KernelErrorKind::TileDoesNotDivide { axes } = err.kind() else { panic!("{err}") };
    assert_eq!(axes.iter().map(|a| a.axis).collect::<Vec<_>>(), [0, 2]);
    let err = Tiling::new(&[6, 4], &[6]).unwrap_err();
    assert_eq!(err.to_string(), "tile has 1 dimensions where the data has 2");
    assert!(Tiling::strided(&[2, 2], &[2], &[2, 2]).is_err());
    // A block larger than its dimension.
    assert!(Tiling::new(&[4], &[8]).is_err());
}

#[test]
fn huge_shapes_are_refused() {
    for shape in [[usize::MAX, 2], [1 << 40, 1 << 40], [usize::MAX, 1]] {
        let err = Tiling::new(&shape, &[1, 1]).unwrap_err();
        assert!(matches!(err.kind(), KernelErrorKind::TooLarge { .. }), "{err}");
    }
    // The zero does not hide the overflow of the others.
    assert!(Tiling::new(&[0, usize::MAX, 2], &[0, 1, 1]).is_err());
    let err = Tiling::strided(&[2, 2], &[usize::MAX, 1], &[2, 2]).unwrap_err();
    assert!(matches!(err.kind(), KernelErrorKind::TooLarge { .. }), "{err}");
}

#[test]
fn empty_and_scalar_data() {
    let scalar = Tiling::new(&[], &[]).unwrap();
    assert_eq!((scalar.len(), scalar.num_tiles(), scalar.tile_len()), (1, 1, 1));
    let empty = Tiling::new(&[0, 4], &[0, 1]).unwrap();
    assert_eq!((empty.len(), empty.num_tiles(), empty.tile_len()), (0, 4, 0));
    let none = Tiling::new(&[0, 4], &[1, 4]).unwrap();
    assert_eq!((none.len(), none.num_tiles(), none.tile_len()), (0, 0, 4));
    assert_eq!(Tiling::whole(&[3, 0]).unwrap().num_tiles(), 1);
}

/// The walk must agree with `tile_of` element by element, whatever was merged.
#[track_caller]
fn check_walk(tiling: &Tiling) {
    let plan = tiling.plan();
    let mut expected = vec![(usize::MAX, usize::MAX); tiling.len()];
    for tile in 0..tiling.num_tiles() {
        for e in tiling.tile_elements(tile) {
            expected[e.output] = (e.input, tile);
            assert_eq!(tiling.input_of(e.output), e.input);
        }
    }
    let len = tiling.len();
    for range in [0..len, 0..len / 2, len / 2..len, len / 3..len - len / 4] {
        if range.is_empty() {
            continue;
        }
        let span = plan.tile_span(range.clone());
        for walk in [Walk::Plain, Walk::Repeats, Walk::Short] {
            let mut next = range.start;
            plan.walk(range.clone(), walk, |piece| {
                assert_eq!(piece.pos, next);
                assert!(piece.repeat == 1 || walk == Walk::Repeats && piece.len == plan.lanes());
                for number in 0..piece.len * piece.repeat {
                    let i = number % piece.len;
                    let tile = match piece.tiles {
                        Tiles::One(tile) => tile,
                        Tiles::Lanes { base, phase } => {
                            assert!(phase + piece.len <= plan.lanes());
                            if plan.lanes_are_tiles() {
                                assert_eq!(plan.lane_tile(phase + i), phase + i);
                            }
                            base + plan.lane_tile(phase + i)
                        }
                        Tiles::Short { base, phase } => {
                            assert_eq!(walk, Walk::Short);
                            base + (phase + i) % plan.period() / plan.tile()
                        }
                    };
                    assert!(span.contains(&tile));
                    let input = piece.input + number * plan.stride();
                    assert_eq!((input, tile), expected[next + number], "{tiling:?}");
                }
                next += piece.len * piece.repeat;
            });
            assert_eq!(next, range.end);
        }
    }
}

#[test]
fn walks_agree_with_index_arithmetic() {
    for (shape, tile) in [
        (&[][..], &[][..]),
        (&[7], &[7]),
        (&[8], &[2]),
        (&[4, 6], &[4, 6]),
        (&[4, 6], &[1, 6]),
        (&[4, 6], &[4, 1]),
        (&[4, 6], &[2, 3]),
        (&[4, 6], &[1, 3]),
        (&[4, 6], &[2, 6]),
        (&[4, 6], &[2, 1]),
        (&[4, 6], &[1, 1]),
        (&[3, 4, 5], &[3, 1, 5]),
        (&[3, 40, 5], &[3, 4, 5]),
        (&[2, 3, 4, 5], &[2, 1, 4, 1]),
        (&[2, 3, 4, 5], &[1, 3, 1, 5]),
        (&[2, 3, 4, 5], &[2, 1, 2, 5]),
        (&[5, 64], &[5, 32]),
        (&[5, 600], &[5, 1]),
        (&[64, 600], &[32, 1]),
        (&[1, 6, 1, 4], &[1, 1, 1, 2]),
    ] {
        let tiling = Tiling::new(shape, tile).unwrap();
        assert!(tiling.is_contiguous());
        check_walk(&tiling);
        // A view whose axes are reversed in memory, one with gaps, and one that is broadcast.
        let mut reversed = vec![1; shape.len()];
        for d in 1..shape.len() {
            reversed[d] = reversed[d - 1] * shape[d - 1];
        }
        check_walk(&Tiling::strided(shape, &reversed, tile).unwrap());
        let gaps: Vec<usize> = tiling.strides().iter().map(|s| s * 3).collect();
        check_walk(&Tiling::strided(shape, &gaps, tile).unwrap());
        let mut broadcast = tiling.strides().to_vec();
        if let Some(first) = broadcast.first_mut() {
            *first = 0;
        }
        check_walk(&Tiling::strided(shape, &broadcast, tile).unwrap());
    }
}

#[test]
fn common_granularities_are_one_row() {
    for (shape, tile) in [
        (&[64, 32, 3, 3][..], &[1, 32, 3, 3][..]),
        (&[64, 32, 3, 3], &[64, 1, 3, 3]),
        (&[8, 16, 16, 3], &[8, 16, 16, 1]),
        (&[64, 128], &[1, 32]),
        (&[64, 128], &[64, 32]),
        (&[64, 128], &[64, 128]),
    ] {
        let mut pieces = 0;
        let tiling = Tiling::new(shape, tile).unwrap();
        tiling.plan().walk(0..tiling.len(), Walk::Plain, |_| pieces += 1);
        let longest = tiling.len() / 16;
        assert!(pieces <= longest.max(1), "{shape:?} by {tile:?}: {pieces} pieces");
    }
}
