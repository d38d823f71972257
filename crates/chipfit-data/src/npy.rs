//! npy, numpy's file format for one array: a magic number, a Python dictionary as text, then the elements.

/// The eight bytes that begin every file: a signature and the version.
const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is read; numpy's own limit for untrusted files is 10,000.
pub(crate) const MAX_HEADER_BYTES: usize = 1 << 16;
/// Most dimensions an array may have, as in numpy.
const MAX_RANK: usize = 64;

/// Element type of an array; little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NpyType {
    /// `|u1`.
    U8,
    /// `|i1`.
    I8,
    /// `<u2`.
    U16,
    /// `<i2`.
    I16,
    /// `<u4`.
    U32,
    /// `<i4`.
    I32,
    /// `<u8`.
    U64,
    /// `<i8`.
    I64,
    /// `<f4`.
    F32,
    /// `<f8`.
    F64,
}

impl NpyType {
    const ALL: [(Self, &'static str, usize); 10] = [
        (Self::U8, "|u1", 1),
        (Self::I8, "|i1", 1),
        (Self::U16, "<u2", 2),
        (Self::I16, "<i2", 2),
        (Self::U32, "<u4", 4),
        (Self::I32, "<i4", 4),
        (Self::U64, "<u8", 8),
        (Self::I64, "<i8", 8),
        (Self::F32, "<f4", 4),
        (Self::F64, "<f8", 8),
    ];

    /// numpy's name of the type.
    pub fn descr(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, descr, _)| descr)
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or(1, |(.., bytes)| *bytes)
    }

    fn parse(descr: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, known, _)| *known == descr).map(|(kind, ..)| *kind).ok_or_else(|| {
            format!("element type '{descr}' is not read; save it as uint8, float32 or a little-endian integer")
        })
    }
}

/// What precedes the elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dtype: NpyType,
    pub(crate) shape: Vec<usize>,
    /// Where the elements begin.
    pub(crate) start: usize,
    /// Bytes of all elements.
    pub(crate) value_bytes: u64,
}

/// An array in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyArray {
    dtype: NpyType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    start: usize,
}

impl NpyArray {
    /// Element type.
    pub fn dtype(&self) -> NpyType {
        self.dtype
    }

    /// Dimensions, the last varies fastest.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, little-endian.
    pub fn values(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The file's bytes and where the elements begin.
    pub(crate) fn into_bytes(self) -> (Vec<u8>, usize) {
        (self.bytes, self.start)
    }
}

/// Takes a whole npy file.
///
/// # Errors
/// A sentence that says what is wrong: the magic number, the header, the element type, Fortran order or the length.
pub fn parse_npy(bytes: Vec<u8>) -> Result<NpyArray, String> {
    let header = Header::parse(&bytes)?;
    let found = (bytes.len() - header.start.min(bytes.len())) as u64;
    if found != header.value_bytes {
        return Err(format!(
            "an array of shape {:?} needs {} bytes, the file has {found}: it is truncated or damaged",
            header.shape, header.value_bytes
        ));
    }
    Ok(NpyArray { dtype: header.dtype, shape: header.shape, bytes, start: header.start })
}

impl Header {
    /// Reads the header; of `bytes` only the first 64 KiB and a few matter.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("not an npy file: the signature is missing")?;
        let (header_bytes, before) = match rest {
            [1, _, low, high, ..] => (usize::from(u16::from_le_bytes([*low, *high])), 10),
            [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
            [version, ..] if *version > 3 => return Err(format!("npy version {version} is unknown")),
            _ => return Err("the npy header is cut short".to_owned()),
        };
        if header_bytes > MAX_HEADER_BYTES {
            return Err(format!("an npy header of {header_bytes} bytes is too long; structured arrays are not read"));
        }
        let start = before + header_bytes;
        let text = bytes.get(before..start).ok_or("the npy header is cut short")?;
        let text = std::str::from_utf8(text).map_err(|_| "the npy header is not text")?;
        let fields = Fields::parse(text).ok_or_else(|| {
            "the npy header is not of the form {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}; \
             structured arrays and Python objects are not read"
                .to_owned()
        })?;
        let dtype = NpyType::parse(&fields.descr)?;
        if fields.is_fortran_order && fields.shape.len() > 1 {
            return Err("the array is in Fortran order; save numpy.ascontiguousarray(x)".to_owned());
        }
        let elems = fields.shape.iter().try_fold(dtype.bytes() as u64, |all, dim| all.checked_mul(*dim as u64));
        let value_bytes = elems.ok_or_else(|| format!("shape {:?} overflows", fields.shape))?;
        Ok(Self { dtype, shape: fields.shape, start, value_bytes })
    }

    /// The header's bytes as numpy writes them: padded so that elements begin at a multiple of 64.
    pub(crate) fn encode(dtype: NpyType, shape: &[usize]) -> Result<Vec<u8>, String> {
        let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
        let shape = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
        let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({shape}), }}", dtype.descr());
        let padded = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64);
        while MAGIC.len() + 4 + text.len() + 1 < padded {
            text.push(' ');
        }
        text.push('\n');
        let length = u16::try_from(text.len()).map_err(|_| "too many dimensions for an npy header".to_owned())?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend(length.to_le_bytes());
        bytes.extend(text.as_bytes());
        Ok(bytes)
    }
}

/// The dictionary's three entries.
struct Fields {
    descr: String,
    is_fortran_order: bool,
    shape: Vec<usize>,
}

impl Fields {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = Cursor(text.trim().strip_prefix('{')?.strip_suffix('}')?);
        let (mut descr, mut order, mut shape) = (None, None, None);
        while !rest.0.trim().is_empty() {
            let key = rest.quoted()?;
            rest.expect(':')?;
            match key.as_str() {
                "descr" => descr = Some(rest.quoted()?),
                "fortran_order" => order = Some(rest.boolean()?),
                "shape" => shape = Some(rest.tuple()?),
                _ => return None,
            }
            if !rest.0.trim().is_empty() {
                rest.expect(',')?;
            }
        }
        Some(Self { descr: descr?, is_fortran_order: order?, shape: shape? })
    }
}

/// What is left of a text.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn expect(&mut self, symbol: char) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(symbol)?;
        Some(())
    }

    fn quoted(&mut self) -> Option<String> {
        let rest = self.0.trim_start();
        let quote = rest.chars().next().filter(|first| matches!(first, '\'' | '"'))?;
        let (inside, rest) = rest.strip_prefix(quote)?.split_once(quote)?;
        self.0 = rest;
        Some(inside.to_owned())
    }

    fn boolean(&mut self) -> Option<bool> {
        let rest = self.0.trim_start();
        if let Some(rest) = rest.strip_prefix("False") {
            self.0 = rest;
            return Some(false);
        }
        self.0 = rest.strip_prefix("True")?;
        Some(true)
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        self.expect('(')?;
        let (inside, rest) = self.0.split_once(')')?;
        self.0 = rest;
        let inside = inside.trim();
        let inside = inside.strip_suffix(',').unwrap_or(inside);
        if inside.trim().is_empty() {
            return Some(Vec::new());
        }
        let dims: Option<Vec<usize>> = inside.split(',').map(|dim| dim.trim().parse().ok()).collect();
        dims.filter(|dims| dims.len() <= MAX_RANK)
    }
}
