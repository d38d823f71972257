//! The table of trials as Parquet: one row a trial, by trial number.
//!
//! Columns are documented in `docs/campaigns.md`. The bytes depend on the rows and the writer's version alone.

use std::fs::File;
use std::sync::Arc;

use chipfit_npu::{Change, Site};
use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use crate::file::{Campaign, Mode};
use crate::folder::RunFolder;
use crate::plan::{Plan, Trial, Work};
use crate::record::Record;
use crate::subject::{Picture, Subject};

/// Rows that are written together.
const GROUP_ROWS: usize = 1 << 20;

const COMMON: &str = "
    required int64 trial; required int32 cell; required int64 picture; required int32 label;
    required binary outcome (UTF8); required int32 clean_class; required int32 class;
    required boolean sdc_top5; required boolean top5; required float confidence_shift; optional int64 strikes;";
const SINGLE: &str = "
    required int32 step; required binary layer (UTF8); required binary site (UTF8); required binary kind (UTF8);
    optional int32 bit; required int64 word; required int64 mask_or_value; required int64 channel;
    required int64 position; required int64 place; optional int32 masked_step; optional binary masked_by (UTF8);";
const RATE: &str = "
    required binary curve (UTF8); optional double rate; required int64 draw;";

/// One row's sources.
struct Row<'a> {
    trial: Trial,
    record: &'a Record,
    picture: &'a Picture,
}

/// Writes the table to `file`.
pub(crate) fn write(file: &mut File, folder: &RunFolder, plan: &Plan, records: &[Record]) -> Result<()> {
    let is_single = matches!(folder.campaign.mode, Mode::Single(_));
    let schema = format!("message trials {{ {COMMON} {} }}", if is_single { SINGLE } else { RATE });
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer =
        SerializedFileWriter::new(file.try_clone()?, Arc::new(parse_message_type(&schema)?), Arc::new(properties))?;
    for group in records.chunks(GROUP_ROWS) {
        let rows: Vec<Row<'_>> = group
            .iter()
            .map(|record| {
                let trial = plan.trial(record.number).map_err(general)?;
                let picture = folder.subject.pictures.get(trial.picture).ok_or_else(|| general("no such picture"))?;
                Ok(Row { trial, record, picture })
            })
            .collect::<Result<_>>()?;
        let mut columns = writer.next_row_group()?;
        common(&mut columns, &rows)?;
        if is_single {
            single(&mut columns, &rows, &folder.subject)?;
        } else {
            rate(&mut columns, &rows, &folder.campaign, plan)?;
        }
        columns.close()?;
    }
    writer.close().map(|_| ())
}

fn general(what: impl ToString) -> ParquetError {
    ParquetError::General(what.to_string())
}

type Columns<'a> = SerializedRowGroupWriter<'a, File>;

/// A column without gaps.
fn full<T: DataType>(columns: &mut Columns<'_>, values: Vec<T::T>) -> Result<()> {
    let mut column = columns.next_column()?.ok_or_else(|| general("too many columns"))?;
    column.typed::<T>().write_batch(&values, None, None)?;
    column.close()
}

/// A column with gaps.
fn sparse<T: DataType>(columns: &mut Columns<'_>, values: Vec<Option<T::T>>) -> Result<()> {
    let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    let mut column = columns.next_column()?.ok_or_else(|| general("too many columns"))?;
    column.typed::<T>().write_batch(&values, Some(&levels), None)?;
    column.close()
}

/// 64-bit numbers above 2^63 - 1 do not fit the column; the plan allows none that large in practice, and saying so
/// is better than wrapping.
fn long(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| general(format!("{number} exceeds 63 bits")))
}

fn short(number: u32) -> Result<i32> {
    i32::try_from(number).map_err(|_| general(format!("{number} exceeds 31 bits")))
}

fn position(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| general(format!("{number} exceeds 31 bits")))
}

fn common(columns: &mut Columns<'_>, rows: &[Row<'_>]) -> Result<()> {
    full::<Int64Type>(columns, collect(rows, |r| long(r.trial.number))?)?;
    full::<Int32Type>(columns, collect(rows, |r| position(r.trial.cell))?)?;
    full::<Int64Type>(columns, collect(rows, |r| long(r.picture.index))?)?;
    full::<Int32Type>(columns, collect(rows, |r| short(r.picture.label))?)?;
    full::<ByteArrayType>(columns, collect(rows, |r| Ok(ByteArray::from(r.record.verdict.outcome.name())))?)?;
    full::<Int32Type>(columns, collect(rows, |r| short(r.picture.class()))?)?;
    full::<Int32Type>(columns, collect(rows, |r| short(r.record.verdict.class))?)?;
    full::<BoolType>(columns, collect(rows, |r| Ok(r.record.verdict.is_sdc_top5))?)?;
    full::<BoolType>(columns, collect(rows, |r| Ok(r.record.verdict.is_in_top5))?)?;
    full::<FloatType>(columns, collect(rows, |r| Ok(r.record.verdict.shift))?)?;
    sparse::<Int64Type>(columns, collect(rows, |r| Ok(r.record.strikes.map(i64::from)))?)
}

fn single(columns: &mut Columns<'_>, rows: &[Row<'_>], subject: &Subject) -> Result<()> {
    let faults: Vec<_> = rows
        .iter()
        .map(|row| match row.trial.work {
            Work::Fault(fault) => Ok(fault),
            Work::Pass { .. } => Err(general("a trial without a fault")),
        })
        .collect::<Result<_>>()?;
    let layer = |at: usize| subject.layers.get(at).ok_or_else(|| general("no such layer"));
    full::<Int32Type>(columns, collect(&faults, |f| position(layer(f.layer)?.step))?)?;
    full::<ByteArrayType>(columns, collect(&faults, |f| Ok(ByteArray::from(layer(f.layer)?.name.as_str())))?)?;
    full::<ByteArrayType>(columns, collect(&faults, |f| Ok(ByteArray::from(Site::name(f.site))))?)?;
    full::<ByteArrayType>(columns, collect(&faults, |f| Ok(ByteArray::from(f.kind.name().into_bytes())))?)?;
    sparse::<Int32Type>(columns, collect(&faults, |f| f.bit.map(short).transpose())?)?;
    full::<Int64Type>(columns, collect(&faults, |f| long(f.strike.word))?)?;
    let operand = |change: Change| match change {
        Change::Xor(m) | Change::Clear(m) | Change::Raise(m) | Change::Set(m) => i64::from(m),
        Change::AddSigned(d) | Change::AddUnsigned(d) => i64::from(d),
    };
    full::<Int64Type>(columns, collect(&faults, |f| Ok(operand(f.strike.change)))?)?;
    full::<Int64Type>(columns, collect(&faults, |f| long(f.channel))?)?;
    full::<Int64Type>(columns, collect(&faults, |f| long(f.position))?)?;
    full::<Int64Type>(columns, collect(&faults, |f| long(f.place))?)?;
    let masked = |r: &Row<'_>| r.record.verdict.masked;
    sparse::<Int32Type>(
        columns,
        collect(rows, |r| masked(r).and_then(|m| m.step).map(|s| position(s.0)).transpose())?,
    )?;
    sparse::<ByteArrayType>(columns, collect(rows, |r| Ok(masked(r).map(|m| ByteArray::from(m.by.name()))))?)
}

fn rate(columns: &mut Columns<'_>, rows: &[Row<'_>], campaign: &Campaign, plan: &Plan) -> Result<()> {
    let Mode::Rate(curves) = &campaign.mode else { return Err(general("no curves")) };
    let point = |row: &Row<'_>| {
        let (curve, at) = plan.cells().get(row.trial.cell)?.name.point?;
        Some((curves.get(curve)?, at))
    };
    let known = |row: &Row<'_>| point(row).ok_or_else(|| general("no such point"));
    full::<ByteArrayType>(columns, collect(rows, |r| Ok(ByteArray::from(known(r)?.0.name.as_str())))?)?;
    sparse::<DoubleType>(columns, collect(rows, |r| known(r).map(|(curve, at)| curve.rates.at(at)))?)?;
    full::<Int64Type>(
        columns,
        collect(rows, |r| match r.trial.work {
            Work::Pass { draw, .. } => long(draw),
            Work::Fault(_) => Err(general("a fault in a rate campaign")),
        })?,
    )
}

fn collect<R, T>(rows: &[R], of: impl Fn(&R) -> Result<T>) -> Result<Vec<T>> {
    rows.iter().map(of).collect()
}
