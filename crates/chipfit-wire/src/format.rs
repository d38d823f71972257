//! How values become bytes: little-endian readers and writers, and the one place that knows each format's name.
//!
//! Promises: `read(write(x)) == x`; every value has one encoding only; a reader never panics, never reads past its end,
//! and reserves no memory that a count or length asks for: lists grow as their items are read, and hold at most
//! [`LIST_LIMIT`] of them. The formats' names are those of `docs/protocol.md`.

use std::sync::Arc;

/// Bytes that several owners share without copying: pictures, models, payloads.
pub type Blob = Arc<[u8]>;

/// Most items of one list.
pub const LIST_LIMIT: u64 = 1 << 16;

/// Most bytes of one text.
pub const TEXT_LIMIT: u64 = 1 << 20;

/// What is wrong with the bytes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes end inside the value.
    #[error("needs {wanted} bytes where {left} are left")]
    Short {
        /// Bytes that the value asks for.
        wanted: u64,
        /// Bytes that are there.
        left: u64,
    },
    /// Bytes follow the last field.
    #[error("{left} bytes follow the last field")]
    Trailing {
        /// How many.
        left: u64,
    },
    /// A text that is not UTF-8.
    #[error("is not UTF-8")]
    Text,
    /// A varint with needless bytes, or of more than 64 bits.
    #[error("is not the shortest form of a number of at most 64 bits")]
    Varint,
    /// A number, count or length above its limit.
    #[error("is {value}, above the limit of {limit}")]
    Limit {
        /// What the bytes say.
        value: u64,
        /// Most that is taken.
        limit: u64,
    },
    /// An enumeration's number that this version does not know.
    #[error("is {value}, which names nothing in this version")]
    Choice {
        /// The number.
        value: u64,
    },
    /// Two fields that contradict each other.
    #[error("contradicts another field: {what}")]
    Contradiction {
        /// Which, and how.
        what: &'static str,
    },
}

/// A field that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Name of the innermost field.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Takes values from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    field: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads from the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, field: "" }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Fault::Short`].
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], Malformed> {
        let short = Fault::Short { wanted: count, left: self.rest.len() as u64 };
        let Some((taken, rest)) = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count))
        else {
            return Err(self.fault(short));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`Fault::Short`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(self.fault(Fault::Short { wanted: N as u64, left: self.rest.len() as u64 }));
        };
        self.rest = rest;
        Ok(*taken)
    }

    /// One value, called `field` in errors.
    ///
    /// # Errors
    /// What the value's own reader says.
    pub fn field<T: Wire>(&mut self, field: &'static str) -> Result<T, Malformed> {
        self.field = field;
        T::read(self)
    }

    /// A number in seven-bit groups, at most `limit`.
    ///
    /// # Errors
    /// [`Fault::Varint`], [`Fault::Limit`], [`Fault::Short`].
    pub fn varint(&mut self, limit: u64) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let group = u64::from(byte & 0x7f);
            if (group << shift) >> shift != group || (shift > 0 && byte == 0) {
                return Err(self.fault(Fault::Varint));
            }
            value |= group << shift;
            if byte & 0x80 == 0 {
                return if value <= limit { Ok(value) } else { Err(self.fault(Fault::Limit { value, limit })) };
            }
        }
        Err(self.fault(Fault::Varint))
    }

    /// An error of the field that is being read.
    pub fn fault(&self, fault: Fault) -> Malformed {
        Malformed { field: self.field, fault }
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`Fault::Trailing`].
    pub fn end(&self) -> Result<(), Malformed> {
        match self.rest.len() as u64 {
            0 => Ok(()),
            left => Err(self.fault(Fault::Trailing { left })),
        }
    }
}

/// Appends values, or only counts their bytes.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    kept: Option<Vec<u8>>,
    length: u64,
    excess: Option<Fault>,
}

impl Writer {
    /// Keeps what is written.
    pub fn new() -> Self {
        Self { kept: Some(Vec::new()), ..Self::default() }
    }

    /// Keeps what is written, in room for `bytes` bytes that were counted before.
    pub fn with_capacity(bytes: u64) -> Self {
        Self { kept: Some(Vec::with_capacity(usize::try_from(bytes).unwrap_or(0))), ..Self::default() }
    }

    /// Only counts.
    pub fn counting() -> Self {
        Self::default()
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if let Some(kept) = &mut self.kept {
            kept.extend_from_slice(bytes);
        }
    }

    /// Appends a number in seven-bit groups, the lowest first; the highest bit says that more follow.
    pub fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.raw(&[value.to_le_bytes()[0] | 0x80]);
            value >>= 7;
        }
        self.raw(&[value.to_le_bytes()[0]]);
    }

    /// Appends a count of items or bytes, and remembers when no reader would take so many.
    pub fn count(&mut self, count: usize, limit: u64) {
        let value = count as u64;
        if value > limit {
            self.excess.get_or_insert(Fault::Limit { value, limit });
        }
        self.varint(value);
    }

    /// The first count that no reader would take.
    pub fn excess(&self) -> Option<Fault> {
        self.excess
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What was written; empty for a counting writer.
    pub fn into_bytes(self) -> Vec<u8> {
        self.kept.unwrap_or_default()
    }
}

/// A value with one exact encoding.
pub trait Wire: Sized {
    /// Name of the encoding, as `docs/protocol.md` has it.
    fn format() -> String;

    /// Appends the value.
    fn write(&self, writer: &mut Writer);

    /// Takes the value.
    ///
    /// # Errors
    /// [`Malformed`], with the field's name.
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed>;
}

/// One row of a message's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// Its format.
    pub format: String,
}

/// The table of an enumeration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Its name.
    pub name: &'static str,
    /// The integer on the wire.
    pub integer: &'static str,
    /// Number and name of every choice.
    pub choices: Vec<(u64, &'static str)>,
}

/// Fixed-size little-endian integers.
macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl Wire for $integer {
            fn format() -> String {
                stringify!($integer).to_owned()
            }
            fn write(&self, writer: &mut Writer) {
                writer.raw(&self.to_le_bytes());
            }
            fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
                reader.array().map(Self::from_le_bytes)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, i8);

/// A number that is mostly small: seven bits a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Varint(pub u32);

impl Wire for Varint {
    fn format() -> String {
        "varint".to_owned()
    }
    fn write(&self, writer: &mut Writer) {
        writer.varint(u64::from(self.0));
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let value = reader.varint(u64::from(u32::MAX))?;
        u32::try_from(value).map(Self).map_err(|_| reader.fault(Fault::Varint))
    }
}

impl Wire for bool {
    fn format() -> String {
        "bool".to_owned()
    }
    fn write(&self, writer: &mut Writer) {
        writer.raw(&[u8::from(*self)]);
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(reader.fault(Fault::Choice { value: u64::from(other) })),
        }
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn format() -> String {
        format!("[{N}]")
    }
    fn write(&self, writer: &mut Writer) {
        writer.raw(self);
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.array()
    }
}

impl Wire for Blob {
    fn format() -> String {
        "bytes".to_owned()
    }
    fn write(&self, writer: &mut Writer) {
        writer.count(self.len(), u64::from(u32::MAX));
        writer.raw(self);
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let length = reader.varint(u64::from(u32::MAX))?;
        reader.take(length).map(Into::into)
    }
}

impl Wire for String {
    fn format() -> String {
        "text".to_owned()
    }
    fn write(&self, writer: &mut Writer) {
        writer.count(self.len(), TEXT_LIMIT);
        writer.raw(self.as_bytes());
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let length = reader.varint(TEXT_LIMIT)?;
        let bytes = reader.take(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| reader.fault(Fault::Text))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn format() -> String {
        format!("optional {}", T::format())
    }
    fn write(&self, writer: &mut Writer) {
        self.is_some().write(writer);
        if let Some(value) = self {
            value.write(writer);
        }
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        if bool::read(reader)? { T::read(reader).map(Some) } else { Ok(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn format() -> String {
        format!("list of {}", T::format())
    }
    fn write(&self, writer: &mut Writer) {
        writer.count(self.len(), LIST_LIMIT);
        for item in self {
            item.write(writer);
        }
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = reader.varint(LIST_LIMIT)?;
        let field = reader.field;
        let mut items = Self::new();
        for _ in 0..count {
            reader.field = field;
            items.push(T::read(reader)?);
        }
        Ok(items)
    }
}

/// A group of fields, one after another: the struct, its bytes and its table from one list.
macro_rules! wire_struct {
    ($(#[$about:meta])* $name:ident { $($(#[$says:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$says])* pub $field: $kind,)*
        }
        impl $name {
            /// The fields in the order of their bytes.
            pub fn fields() -> Vec<$crate::format::Field> {
                vec![$($crate::format::Field {
                    name: stringify!($field),
                    format: <$kind as $crate::format::Wire>::format(),
                }),*]
            }
        }
        impl $crate::format::Wire for $name {
            fn format() -> String {
                stringify!($name).to_owned()
            }
            fn write(&self, writer: &mut $crate::format::Writer) {
                $($crate::format::Wire::write(&self.$field, writer);)*
            }
            fn read(reader: &mut $crate::format::Reader<'_>) -> Result<Self, $crate::format::Malformed> {
                Ok(Self { $($field: reader.field(stringify!($field))?,)* })
            }
        }
    };
}
pub(crate) use wire_struct;

/// A closed list of numbered choices: the enumeration, its bytes and its table from one list.
macro_rules! wire_enum {
    ($(#[$about:meta])* $name:ident: $integer:ty { $($(#[$says:meta])* $choice:ident = $number:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$says])* $choice,)*
        }
        impl $name {
            /// Every choice, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$choice),*];

            /// The number on the wire.
            pub const fn number(self) -> $integer {
                match self {
                    $(Self::$choice => $number,)*
                }
            }

            /// The name in `docs/protocol.md`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$choice => stringify!($choice),)*
                }
            }

            /// Name, integer, and the number and name of every choice.
            pub fn table() -> $crate::format::Choices {
                let choices = Self::ALL.iter().map(|choice| (u64::from(choice.number()), choice.name())).collect();
                $crate::format::Choices { name: stringify!($name), integer: stringify!($integer), choices }
            }

            /// The choice of a number, if this version has one.
            pub const fn from_number(number: $integer) -> Option<Self> {
                match number {
                    $($number => Some(Self::$choice),)*
                    _ => None,
                }
            }
        }
        impl $crate::format::Wire for $name {
            fn format() -> String {
                stringify!($name).to_owned()
            }
            fn write(&self, writer: &mut $crate::format::Writer) {
                self.number().write(writer);
            }
            fn read(reader: &mut $crate::format::Reader<'_>) -> Result<Self, $crate::format::Malformed> {
                let number = <$integer>::read(reader)?;
                Self::from_number(number)
                    .ok_or_else(|| reader.fault($crate::format::Fault::Choice { value: u64::from(number) }))
            }
        }
    };
}
pub(crate) use wire_enum;
