//! Formats, element types, ranges of samples, digests.

use super::*;

#[test]
fn every_format_gives_the_same_samples() {
    let data: Vec<u8> = (0..12).collect();
    let labels = [3, 1, 2];
    let members =
        [("x.npy", npy("|u1", "(3, 2, 2)", &data)), ("y.npy", npy("|u1", "(3,)", &labels))];
    let files = Files::new(&[
        (
            "a.safetensors",
            safetensors(&[("x", Dtype::U8, &[3, 2, 2], &data), ("y", Dtype::U8, &[3], &labels)]),
        ),
        ("stored.npz", npz(&members, CompressionMethod::Stored)),
        ("deflated.npz", npz(&members, CompressionMethod::Deflated)),
        ("x.npy", members[0].1.clone()),
        ("y.npy", members[1].1.clone()),
        ("samples/9.npy", npy("|u1", "(2, 2)", &data[..4])),
        ("samples/10.npy", npy("|u1", "(2, 2)", &data[4..8])),
        ("samples/11.npy", npy("|u1", "(2, 2)", &data[8..])),
        ("samples/readme.txt", vec![]),
        ("parts/1.npy", npy("|u1", "(1, 2, 2)", &data[..4])),
        ("parts/2.npy", npy("|u1", "(2, 2, 2)", &data[4..])),
        ("both/x/1.npy", npy("|u1", "(3, 2, 2)", &data)),
        ("both/y/1.npy", npy("|u1", "(3,)", &labels)),
    ]);
    let several = |x: &str| {
        let paths = [("x", x), ("y", "y.npy")];
        let paths = paths.map(|(name, file)| (name.to_owned(), files.path(file)));
        DataSpec::new(DataPath::Several(paths.into_iter().collect()))
    };
    let in_parts = |spec: DataSpec| DataSpec { each_file: EachFile::Batch, ..spec };
    for spec in [
        files.spec("a.safetensors"),
        files.spec("stored.npz"),
        files.spec("deflated.npz"),
        several("x.npy"),
        several("samples"),
        in_parts(several("parts")),
        in_parts(files.spec("both")),
    ] {
        let spec = DataSpec { labels: Some("y".to_owned()), ..spec };
        let dataset = Dataset::open(&spec, &no_inputs(), &[shaped("input", &[2, 2])])
            .unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        assert_eq!(dataset.num_samples(), 3);
        assert_eq!(dataset.labels(), Some(&[3, 1, 2][..]));
        let batches: Vec<Batch<'_>> = dataset.batches(2).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            batches,
            [
                Batch {
                    first: 0,
                    inputs: vec![NamedArray {
                        name: "input".to_owned(),
                        dtype: InputType::F32,
                        shape: vec![2, 2, 2],
                        data: ArrayData::Float((0..8).map(|x| x as f32).collect()),
                    }],
                    labels: Some(&[3, 1]),
                },
                Batch {
                    first: 2,
                    inputs: vec![NamedArray {
                        name: "input".to_owned(),
                        dtype: InputType::F32,
                        shape: vec![1, 2, 2],
                        data: ArrayData::Float((8..12).map(|x| x as f32).collect()),
                    }],
                    labels: Some(&[2]),
                },
            ],
            "{spec:?}"
        );
    }
}

#[test]
fn every_element_type_is_converted() {
    let cases: [(&str, Vec<u8>, &[f32]); 13] = [
        ("|b1", vec![0, 1, 255], &[0.0, 1.0, 1.0]),
        ("|u1", vec![0, 1, 255], &[0.0, 1.0, 255.0]),
        ("|i1", vec![0, 1, 255], &[0.0, 1.0, -1.0]),
        ("<u2", le(&[0, 1, u16::MAX], u16::to_le_bytes), &[0.0, 1.0, 65535.0]),
        ("<i2", le(&[0, 1, -2], i16::to_le_bytes), &[0.0, 1.0, -2.0]),
        ("<u4", le(&[0, 1, u32::MAX], u32::to_le_bytes), &[0.0, 1.0, 4294967296.0]),
        ("<i4", le(&[0, 1, -2], i32::to_le_bytes), &[0.0, 1.0, -2.0]),
        (">i4", le(&[0, 1, -2], i32::to_be_bytes), &[0.0, 1.0, -2.0]),
        ("<u8", le(&[0, 1, 1 << 60], u64::to_le_bytes), &[0.0, 1.0, (1u64 << 60) as f32]),
        ("<i8", le(&[0, 1, -2], i64::to_le_bytes), &[0.0, 1.0, -2.0]),
        ("<f2", le(&[0u16, 0x3c00, 0xc100], u16::to_le_bytes), &[0.0, 1.0, -2.5]),
        (">f4", le(&[0.0, 1.0, -2.5], f32::to_be_bytes), &[0.0, 1.0, -2.5]),
        ("<f8", le(&[0.0, 0.1, -2.5], f64::to_le_bytes), &[0.0, 0.1, -2.5]),
    ];
    for (descr, bytes, expected) in cases {
        let files = Files::new(&[("x.npy", npy(descr, "(3,)", &bytes))]);
        let dataset = Dataset::open(&files.spec("x.npy"), &no_inputs(), &[input("x")]).unwrap();
        assert_eq!(elements(&dataset, 8).unwrap(), [float(expected)], "{descr}");
    }
    let bf16 = le(&[0x3f80u16, 0xc020], u16::to_le_bytes);
    let files = Files::new(&[("x.safetensors", safetensors(&[("x", Dtype::BF16, &[2], &bf16)]))]);
    let dataset = Dataset::open(&files.spec("x.safetensors"), &no_inputs(), &[input("x")]).unwrap();
    assert_eq!(elements(&dataset, 8).unwrap(), [float(&[1.0, -2.5])]);
}

#[test]
fn integer_inputs_get_their_integers_exactly() {
    let values = [i64::MAX, i64::MIN, 0];
    let files = Files::new(&[
        ("x.npy", npy("<i8", "(3,)", &le(&values, i64::to_le_bytes))),
        ("big.npy", npy("<u8", "(2,)", &le(&[7, u64::MAX], u64::to_le_bytes))),
        ("f.npy", npy("<f4", "(1,)", &floats(&[1.0]))),
    ]);
    let open =
        |file: &str, dtype| Dataset::open(&files.spec(file), &no_inputs(), &[of_type("x", dtype)]);
    let dataset = open("x.npy", InputType::I64).unwrap();
    assert_eq!(elements(&dataset, 3).unwrap(), [[ArrayData::Integer(values.to_vec())]]);

    let error = elements(&open("x.npy", InputType::I32).unwrap(), 3).unwrap_err();
    assert_eq!(
        files.message(&error),
        "tensor `x` of ./x.npy: sample 0 has 9223372036854775807, outside -2147483648..=2147483647 of i32 at element []"
    );
    let error = elements(&open("big.npy", InputType::I64).unwrap(), 3).unwrap_err();
    assert_eq!(
        files.message(&error),
        "tensor `big` of ./big.npy: sample 1 has 18446744073709551615, outside -9223372036854775808..=9223372036854775807 of i64 at element []"
    );
    assert_eq!(
        files.message(&open("f.npy", InputType::I64).unwrap_err()),
        "input `x`: the model takes i64, tensor `f` of ./f.npy holds f32; store integers"
    );
}

#[test]
fn a_range_of_samples_can_be_chosen() {
    let data: Vec<u8> = (0..10).collect();
    let files = Files::new(&[
        ("x.npy", npy("|u1", "(10,)", &data)),
        ("none.npy", npy("|u1", "(0, 3)", &[])),
    ]);
    let open = |skip, samples| {
        let spec = DataSpec { skip, samples, ..files.spec("x.npy") };
        Dataset::open(&spec, &no_inputs(), &[input("x")])
    };
    let dataset = open(7, Some(2)).unwrap();
    assert_eq!(elements(&dataset, 8).unwrap(), [float(&[7.0, 8.0])]);
    assert_eq!(open(7, None).unwrap().num_samples(), 3);
    for (skip, samples, expected) in [
        (0, Some(11), "./x.npy: 11 samples are asked for, it holds 10"),
        (8, Some(3), "./x.npy: 3 samples after 8 are asked for, it holds 10"),
        (10, None, "./x.npy: skipping 10 of 10 samples leaves none"),
        (0, Some(0), "./x.npy: `samples = 0` leaves no sample"),
    ] {
        assert_eq!(files.message(&open(skip, samples).unwrap_err()), expected);
    }
    let error = Dataset::open(&files.spec("none.npy"), &no_inputs(), &[input("x")]).unwrap_err();
    assert_eq!(files.message(&error), "./none.npy: it holds no sample");
}

#[test]
fn npy_headers() {
    let parse = |text: &str| {
        let mut bytes = b"\x93NUMPY\x02\x00".to_vec();
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        npy::read_header(&bytes[..])
    };
    let header = parse("{\"shape\": (2L, 3L), 'fortran_order': False, 'descr': '>f8'}").unwrap();
    assert_eq!((header.shape, header.big_endian, header.bytes), (vec![2, 3], true, 12 + 59));
    assert!(
        parse("{'shape': (), 'fortran_order': True, 'descr': '<f8'}").unwrap().shape.is_empty()
    );
    assert_eq!(
        parse("{'shape': (3,1), 'fortran_order': True, 'descr': '<f8'}").unwrap().shape,
        [3, 1]
    );
    for (text, expected) in [
        (
            "{'shape': (3,2), 'fortran_order': True, 'descr': '<f8'}",
            "the array is stored in Fortran order; save `numpy.ascontiguousarray(x)` instead",
        ),
        ("{'shape': (3,2), 'descr': '<f8'}", "`fortran_order` is missing"),
        ("{'shape': (3,-2), 'descr': '<f8'}", "expected an extent, found `-2), 'descr': '<f8'}`"),
        ("{'shape': (3, 2", "expected `,`, found ``"),
        ("{'shape", "a quote is not closed"),
        ("{shape", "expected a quoted text, found `shape`"),
        ("", "expected `{`, found ``"),
        (
            "{'descr': [('a', '<f4')]",
            "structured types (`descr` is a list) are not supported; save one array per field",
        ),
        ("{'order': 'C'}", "unknown key `order`"),
    ] {
        assert_eq!(
            parse(text).unwrap_err(),
            format!("in the array's header: {expected}"),
            "{text}"
        );
    }
    assert_eq!(
        npy::read_header(&b"\x93NUMPY\x09\x00"[..]).unwrap_err(),
        "version 9.0 of the NumPy format is not supported"
    );
}

#[test]
fn digests_name_the_files_that_were_used() {
    let files = Files::new(&[
        ("x.npy", npy("|u1", "(1,)", &[0])),
        ("y.npy", npy("|u1", "(1,)", &[0])),
        ("unused.npy", npy("|u1", "(1,)", &[0])),
    ]);
    let paths =
        ["y", "x", "unused"].map(|name| (name.to_owned(), files.path(&format!("{name}.npy"))));
    let spec = DataSpec {
        labels: Some("y".to_owned()),
        ..DataSpec::new(DataPath::Several(paths.into_iter().collect()))
    };
    let digests = Dataset::open(&spec, &no_inputs(), &[input("x")]).unwrap().digests().unwrap();
    let names: Vec<_> = digests.iter().map(|digest| digest.path.clone()).collect();
    assert_eq!(names, [files.path("x.npy"), files.path("y.npy")]);
    assert_eq!((digests[0].size_bytes, digests[0].sha256.len()), (129, 64));
    assert_eq!(digests[0].sha256, digests[1].sha256);
}
