// Csv: a table of numbers from a text file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accel/core/error.hpp>
#include <accel/core/mapped_file.hpp>
#include <accel/core/progress.hpp>
#include <accel/dataset/detail/csv_reader.hpp>
#include <accel/dataset/detail/quoted.hpp>
#include <accel/dataset/tensors.hpp>
#include <accel/tensor/spec.hpp>

namespace accel::inline v0_1::dataset {

/// What becomes of a field that is empty, NA, N/A, NaN or null.
enum class Missing {
  error,     // DataError with its place
  nan,       // not a number; of whole numbers, which have none, an error still
  zero,      // 0
  drop_row,  // the row is left out
};

/// A column by the name in the header, or by its number from 0; a negative one counts from the end.
class Column {
 public:
  Column(const char* name) : which_(std::string(name)) {}
  Column(std::string name) : which_(std::move(name)) {}
  Column(int number) : which_(number) {}

  [[nodiscard]] const std::string* name() const { return std::get_if<std::string>(&which_); }
  [[nodiscard]] int number() const { return std::get<int>(which_); }

 private:
  std::variant<std::string, int> which_;
};

struct CsvOptions {
  char delimiter = ',';

  /// Whether the first line holds names. Unset: it does if columns are asked for by name, or if none of its fields is a
  /// number; where that does not decide, an error asks.
  std::optional<bool> header{};

  std::vector<Column> columns{};       // of data; none: all that are not the target's. Text in others does no harm
  std::vector<Column> target{};        // one: target has no dimension for columns
  c10::ScalarType dtype = at::kFloat;  // of data: kFloat, kDouble or kLong
  c10::ScalarType target_dtype = at::kLong;  // of target, likewise
  Missing missing = Missing::error;
  ProgressOptions progress{};
};

/// A row of a Csv, or a batch of them.
struct CsvRow {
  at::Tensor data;    // [columns]; of a batch [rows, columns]
  at::Tensor target;  // []; [columns] if there are several. Undefined if none was asked for
};

/// A table of numbers, read once into memory.
///
///   dataset::Csv train{"digits.csv", {.header = false, .target = {-1}}};
///   dataset::Csv cars{"cars.tsv", {.delimiter = '\t', .columns = {"weight", "year"}, .target = {"mpg"},
///                                  .target_dtype = torch::kFloat, .missing = dataset::Missing::drop_row}};
///
/// Memory   rows x columns x the size of the dtype; never more than 8 bytes for each byte of the file. The file is
///          mapped, and let go of.
/// Cost     one pass over the file with progress; then that of Tensors.
/// Throws   DataError at file:line:column for a field that is no number, or no whole one, or too large for the dtype;
///          for a line with more or fewer fields than the first; for quotes that RFC 4180 does not know; for a column
///          that is not there or there twice. InvalidArgument for options that contradict each other.
/// Source   RFC 4180. Numbers as std::from_chars reads them, whatever the locale.
class Csv {
 public:
  explicit Csv(const std::filesystem::path& path, CsvOptions options = {})
      : options_(std::move(options)), rows_(load(path)) {}

  [[nodiscard]] std::size_t size() const { return rows_.size(); }
  [[nodiscard]] CsvRow get(std::size_t row) const { return rows_.get(row); }
  [[nodiscard]] CsvRow get_batch(const std::vector<std::int64_t>& rows) const { return rows_.get_batch(rows); }

  /// All rows: [rows, columns].
  [[nodiscard]] const at::Tensor& data() const { return rows_.tensors().data; }
  [[nodiscard]] const at::Tensor& target() const { return rows_.tensors().target; }

  /// The names in the header, of data's columns; empty without one.
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }

  /// Rows that were left out under Missing::drop_row.
  [[nodiscard]] std::int64_t dropped() const { return dropped_; }

 private:
  using Fields = std::vector<detail::CsvField>;

  /// A tensor that is filled row by row.
  struct Block {
    std::vector<std::size_t> columns;  // of the file
    c10::ScalarType dtype;
    at::Tensor tensor;   // [room for rows, columns]
    void* to = nullptr;  // its memory
    std::int64_t filled = 0;
  };

  [[nodiscard]] Tensors<CsvRow> load(const std::filesystem::path& path) {
    for (const auto dtype : {options_.dtype, options_.target_dtype})
      ACCEL_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kLong, InvalidArgument,
                  "csv: expected f32, f64 or i64 for dtype and target_dtype, found ", tensor::dtype_name(dtype));
    ACCEL_CHECK(options_.delimiter != '"' && options_.delimiter != '\n' && options_.delimiter != '\r', InvalidArgument,
                "csv: a quote or the end of a line cannot be the delimiter");
    const MappedFile file(path, Access::sequential);
    detail::CsvReader reader(file, options_.delimiter);
    Fields fields;
    ACCEL_CHECK(reader.next(fields), DataError, path.string(), ": expected a line, found none");
    const auto width = fields.size();
    const bool has_header = decide_header(reader, fields);
    auto [data, target] = choose(reader, fields, has_header);

    // A row is a line at least, and has a byte for each field but the last.
    const auto lines = std::ranges::count(file.text(), '\n') + 1;
    const auto room = std::min(lines, static_cast<std::ptrdiff_t>((file.size() + 1) / width + 1));
    for (Block* block : {&data, &target}) {
      block->tensor = at::empty({room, static_cast<std::int64_t>(block->columns.size())}, block->dtype);
      block->to = block->tensor.mutable_data_ptr();
    }

    Progress progress("reading " + path.string(), static_cast<std::int64_t>(file.size()), Counted::bytes,
                      options_.progress);
    for (bool more = !has_header || reader.next(fields); more; more = reader.next(fields)) {
      if (fields.size() != width)
        reader.fail(fields.size() > width ? fields[width].offset : fields.back().offset + fields.back().text.size(),
                    message(width, " fields, as in the first line"), fields.size());
      if (put(reader, fields, data) && put(reader, fields, target)) {
        ++data.filled;
        ++target.filled;
      } else {
        ++dropped_;
      }
      progress.reached(static_cast<std::int64_t>(reader.offset()));
    }
    CsvRow all{data.tensor.narrow(0, 0, data.filled), {}};
    if (target.columns.size() == 1) all.target = target.tensor.narrow(0, 0, target.filled).view({-1});
    if (target.columns.size() > 1) all.target = target.tensor.narrow(0, 0, target.filled);
    return Tensors<CsvRow>(std::move(all));
  }

  /// Whether the first line, `fields`, holds names.
  [[nodiscard]] bool decide_header(const detail::CsvReader& reader, const Fields& fields) const {
    const auto by_name = [](const Column& column) { return column.name() != nullptr; };
    const bool names_asked =
        std::ranges::any_of(options_.columns, by_name) || std::ranges::any_of(options_.target, by_name);
    ACCEL_CHECK(!names_asked || options_.header.value_or(true), InvalidArgument,
                "csv: expected columns by number with .header = false, found one by name");
    if (names_asked || options_.header) return options_.header.value_or(true);
    const auto number = std::ranges::find_if(fields, [](const detail::CsvField& field) {
      return detail::is_missing(field.text) || detail::floating<double>(field.text);
    });
    if (number == fields.end()) return true;
    reader.fail(number->offset, "names in the first line, or .header = true or false to say what it holds",
                detail::quoted(number->text));
  }

  /// Fills names_.
  [[nodiscard]] std::pair<Block, Block> choose(const detail::CsvReader& reader, const Fields& first, bool has_header) {
    Block data{.columns = {}, .dtype = options_.dtype, .tensor = {}};
    Block target{.columns = {}, .dtype = options_.target_dtype, .tensor = {}};
    std::vector<bool> taken(first.size());
    const auto take = [&](const Column& column, Block& block) {
      const auto number = find(reader, first, column);
      ACCEL_CHECK(!taken[number], InvalidArgument, "csv: expected each column once, found column ", number, " twice");
      taken[number] = true;
      block.columns.push_back(number);
    };
    for (const auto& column : options_.target) take(column, target);
    for (const auto& column : options_.columns) take(column, data);
    for (std::size_t number = 0; options_.columns.empty() && number < first.size(); ++number)
      if (!taken[number]) data.columns.push_back(number);
    ACCEL_CHECK(!data.columns.empty(), InvalidArgument, "csv: expected a column that is not the target's, found none");
    for (std::size_t i = 0; has_header && i < data.columns.size(); ++i) names_.push_back(name(first[data.columns[i]]));
    return {std::move(data), std::move(target)};
  }

  [[nodiscard]] static std::size_t find(const detail::CsvReader& reader, const Fields& first, const Column& column) {
    const auto width = static_cast<std::int64_t>(first.size());
    if (column.name() == nullptr) {
      const std::int64_t number = column.number() < 0 ? column.number() + width : column.number();
      if (number < 0 || number >= width)
        reader.fail(first.back().offset, message("a column ", column.number()), message(width, " columns"));
      return static_cast<std::size_t>(number);
    }
    const auto is_it = [&](const detail::CsvField& field) { return name(field) == *column.name(); };
    const auto found = std::ranges::count_if(first, is_it);
    if (found != 1) {
      std::string names;
      for (std::size_t i = 0; i < std::min<std::size_t>(first.size(), 20); ++i)
        names += (i == 0 ? "" : ", ") + detail::quoted(first[i].text);
      reader.fail(first.front().offset, message("a column ", detail::quoted(*column.name()), " once"),
                  message(found, " of it among ", names, first.size() > 20 ? ", ..." : ""));
    }
    return static_cast<std::size_t>(std::ranges::find_if(first, is_it) - first.begin());
  }

  /// Two quotes within quotes are one.
  [[nodiscard]] static std::string name(const detail::CsvField& field) {
    std::string name;
    for (std::size_t i = 0; i < field.text.size(); ++i) {
      name += field.text[i];
      if (field.text.substr(i, 2) == "\"\"") ++i;
    }
    return name;
  }

  /// Writes the block's fields behind the rows that it has; false if the row is to be left out.
  [[nodiscard]] bool put(const detail::CsvReader& reader, const Fields& fields, const Block& block) const {
    const auto width = static_cast<std::int64_t>(block.columns.size());
    for (std::int64_t i = 0; i < width; ++i) {
      const auto& field = fields[block.columns[static_cast<std::size_t>(i)]];
      const auto at = block.filled * width + i;
      const bool missing = detail::is_missing(field.text);
      if (missing && options_.missing == Missing::drop_row) return false;
      if (block.dtype == at::kFloat) {
        static_cast<float*>(block.to)[at] =
            missing ? real_in_place<float>(reader, field) : real<float>(reader, field, "f32");
      } else if (block.dtype == at::kDouble) {
        static_cast<double*>(block.to)[at] =
            missing ? real_in_place<double>(reader, field) : real<double>(reader, field, "f64");
      } else {
        static_cast<std::int64_t*>(block.to)[at] = missing ? whole_in_place(reader, field) : whole(reader, field);
      }
    }
    return true;
  }

  template <class Number>
  [[nodiscard]] static Number real(const detail::CsvReader& reader, const detail::CsvField& field, const char* dtype) {
    const auto number = detail::floating<Number>(field.text);
    if (!number) reader.fail(field.offset, message("a number that ", dtype, " holds"), detail::quoted(field.text));
    return *number;
  }

  [[nodiscard]] static std::int64_t whole(const detail::CsvReader& reader, const detail::CsvField& field) {
    const auto number = detail::whole(field.text);
    if (!number)
      reader.fail(field.offset, "a whole number that i64 holds",
                  detail::quoted(field.text) + "; .dtype and .target_dtype may be torch::kFloat");
    return *number;
  }

  /// In place of one that is missing.
  template <class Number>
  [[nodiscard]] Number real_in_place(const detail::CsvReader& reader, const detail::CsvField& field) const {
    if (options_.missing == Missing::error) refuse_missing(reader, field);
    return options_.missing == Missing::nan ? std::numeric_limits<Number>::quiet_NaN() : Number{0};
  }
  [[nodiscard]] std::int64_t whole_in_place(const detail::CsvReader& reader, const detail::CsvField& field) const {
    if (options_.missing != Missing::zero) refuse_missing(reader, field);
    return 0;
  }

  [[noreturn]] static void refuse_missing(const detail::CsvReader& reader, const detail::CsvField& field) {
    reader.fail(field.offset, "a number",
                detail::quoted(field.text) + "; .missing says what becomes of a value that is not there");
  }

  CsvOptions options_;
  std::vector<std::string> names_;
  std::int64_t dropped_ = 0;
  Tensors<CsvRow> rows_;
};

}  // namespace accel::inline v0_1::dataset
