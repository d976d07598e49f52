// Manifest: what a checkpoint's folder contains, and how to see that it is still that.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include <accel/core/crc32c.hpp>
#include <accel/core/error.hpp>
#include <accel/core/file.hpp>

namespace accel::inline v0_1::checkpoint {

inline constexpr std::string_view manifest_file = "manifest.json";

/// One file of the folder.
struct FileEntry {
  std::uint64_t bytes = 0;
  std::uint32_t crc32c = 0;  // of a file of tensors: of its header, as each tensor has its own; of others: of all
  bool has_tensors = false;

  bool operator==(const FileEntry&) const = default;
};

/// A tensor of a part, and where it lies.
struct TensorEntry {
  std::string name;   // in its part
  std::string file;   // in the folder, where it is called by stored_name()
  std::string dtype;  // of the file format: F32
  std::vector<std::int64_t> shape;
  std::uint32_t crc32c = 0;  // of its bytes

  bool operator==(const TensorEntry&) const = default;
};

/// A number of a part.
struct ValueEntry {
  using Value = std::variant<std::int64_t, double>;

  std::string name;
  Value value;

  bool operator==(const ValueEntry&) const = default;
};

/// What one thing, such as a model or a loader, needs to go on.
struct PartEntry {
  std::string name;         // "model", "optimizer", "loader.1"
  std::optional<int> rank;  // whose it is; of nobody's: the same on every rank
  std::vector<ValueEntry> values;
  std::vector<TensorEntry> tensors;

  bool operator==(const PartEntry&) const = default;

  /// How a tensor of it is called in its file.
  [[nodiscard]] std::string stored_name(std::string_view tensor) const {
    return message(rank ? message("rank", *rank, "/") : "", name, "/", tensor);
  }
};

/// As `manifest.json` has it: a JSON object, whose first line is the checksum of all that follows it.
///
/// Throws   CheckpointError with the path, from parse(), for what is damaged or not understood.
struct Manifest {
  static constexpr int current_version = 1;
  static constexpr std::string_view format = "accel checkpoint";

  int version = current_version;
  std::string library;           // that wrote it, and its version
  std::string id;                // of the save: the same in the folders of all hosts, and in no others
  int world_size = 1;            // at which it was saved
  std::int64_t step = 0;         // optimizer steps taken
  std::optional<double> metric;  // to keep the best by
  std::map<std::string, FileEntry> files;
  std::vector<PartEntry> parts;

  bool operator==(const Manifest&) const = default;

  [[nodiscard]] std::string text() const;
  [[nodiscard]] static Manifest parse(const std::filesystem::path& path, std::string_view text);

  [[nodiscard]] static Manifest read(const std::filesystem::path& folder) {
    const InputFile file(folder / manifest_file);
    constexpr std::uint64_t most = 256 << 20;  // of a million tensors
    ACCEL_CHECK(file.size() <= most, CheckpointError, file.path().string(), ": expected at most ", most,
                " bytes, found ", file.size());
    std::string text(static_cast<std::size_t>(file.size()), '\0');
    file.read(text.data(), text.size(), 0);
    return parse(file.path(), text);
  }

  /// That part, of `rank` if each rank has its own; null if it is not there.
  [[nodiscard]] const PartEntry* find(std::string_view name, int rank) const {
    for (const PartEntry& part : parts)
      if (part.name == name && (!part.rank || *part.rank == rank)) return &part;
    return nullptr;
  }
};

namespace detail {

[[nodiscard]] inline std::string hex(std::uint32_t number) {
  std::string text(8, '0');
  for (std::size_t digit = 0; digit < 8; ++digit, number >>= 4) text[7 - digit] = "0123456789abcdef"[number & 15];
  return text;
}

/// Of a whole file.
[[nodiscard]] inline std::uint32_t crc32c_of(const InputFile& file) {
  std::vector<std::byte> piece(256 << 10);  // stays in the cache
  std::uint32_t sum = 0;
  for (std::uint64_t at = 0; at < file.size(); at += piece.size()) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), file.size() - at));
    file.read(piece.data(), count, at);
    sum = crc32c({piece.data(), count}, sum);
  }
  return sum;
}

[[nodiscard]] inline std::optional<std::uint32_t> number_of_hex(std::string_view text) {
  if (text.size() != 8) return std::nullopt;
  std::uint32_t number = 0;
  for (const char digit : text) {
    const auto value = std::string_view("0123456789abcdef").find(digit);
    if (value == std::string_view::npos) return std::nullopt;
    number = number << 4 | static_cast<std::uint32_t>(value);
  }
  return number;
}

// The first line: whatever becomes of one of its bytes, it is not this line any more.
inline constexpr std::string_view before_checksum = R"({"crc32c": ")";
inline constexpr std::string_view behind_checksum = "\",\n";

inline constexpr int deepest = 8;  // a shape is at 6

/// Takes a manifest's JSON apart, and says where it stood when something is not as it must be.
class ManifestReader {
 public:
  using Json = nlohmann::ordered_json;

  explicit ManifestReader(std::string path) : path_(std::move(path)) {}

  [[nodiscard]] Manifest manifest(const Json& json) {
    Manifest result;
    object(json, "the manifest",
           {"format", "version", "library", "id", "world_size", "step", "metric", "files", "parts"});
    require(text(json, "format") == Manifest::format, "it is no checkpoint of this library");
    result.version = static_cast<int>(count(json, "version", largest_int));
    require(result.version >= 1 && result.version <= Manifest::current_version,
            message("its version is ", result.version, ", and this library knows ", Manifest::current_version,
                    " and older ones; load it with a newer version of the library"));
    result.library = text(json, "library");
    result.id = text(json, "id");
    result.world_size = static_cast<int>(count(json, "world_size", largest_int));
    require(result.world_size >= 1, "world_size must be at least 1");
    result.step = static_cast<std::int64_t>(count(json, "step"));
    const Json& metric = json.at("metric");
    require(metric.is_null() || metric.is_number(), "metric: expected a number, or null");
    if (!metric.is_null()) result.metric = metric.get<double>();
    require(json.at("files").is_object() && json.at("parts").is_array(),
            "expected files as an object, parts as a list");
    for (const auto& [name, entry] : json.at("files").items()) {
      const Where where(*this, message("file ", name));
      require(is_file_name(name), "that is no name for a file in this folder");
      result.files.emplace(name, file(entry));
    }
    std::set<std::string> seen;
    for (const auto& entry : json.at("parts")) {
      PartEntry one = part(entry);
      require(seen.insert(one.stored_name("")).second, message("part ", one.stored_name(""), " is there twice"));
      for (const auto& tensor : one.tensors) {
        const auto found = result.files.find(tensor.file);
        require(found != result.files.end() && found->second.has_tensors,
                message("tensor ", one.stored_name(tensor.name), " should be in ", tensor.file,
                        ", which is none of its files of tensors"));
      }
      result.parts.push_back(std::move(one));
    }
    return result;
  }

 private:
  /// What is looked at, for messages.
  struct Where {
    Where(ManifestReader& own, std::string what) : reader(own) { reader.where_.push_back(std::move(what)); }
    Where(const Where&) = delete;
    Where& operator=(const Where&) = delete;
    ~Where() { reader.where_.pop_back(); }
    ManifestReader& reader;
  };

  [[noreturn]] void fail(std::string_view what) const {
    std::string where;
    for (const auto& one : where_) where += one + ": ";
    throw CheckpointError(message(path_, ": ", where, what));
  }
  void require(bool holds, std::string_view what) const {
    if (!holds) fail(what);
  }

  /// An object with these fields, and no others.
  void object(const Json& json, std::string_view what, std::initializer_list<std::string_view> fields) const {
    require(json.is_object(), message("expected ", what, " as an object, found ", json.type_name()));
    for (const auto field : fields)
      require(json.contains(field), message("expected the field ", field, ", found none"));
    require(json.size() == fields.size(), message("expected ", fields.size(), " fields, found ", json.size()));
  }

  [[nodiscard]] std::string text(const Json& json, std::string_view field) const {
    const Json& value = json.at(field);
    require(value.is_string(), message(field, ": expected a text, found ", value.type_name()));
    return value.get<std::string>();
  }

  [[nodiscard]] std::uint64_t count(const Json& json, std::string_view field, std::uint64_t most = largest) const {
    const Json& value = json.at(field);
    require(value.is_number_unsigned() && value.get<std::uint64_t>() <= most,
            message(field, ": expected a number from 0 to ", most, ", found ", value.dump()));
    return value.get<std::uint64_t>();
  }

  [[nodiscard]] std::uint32_t checksum(const Json& json) const {
    const auto found = number_of_hex(text(json, "crc32c"));
    require(found.has_value(), "crc32c: expected 8 digits of base 16");
    return *found;
  }

  [[nodiscard]] static bool is_file_name(std::string_view name) {
    return !name.empty() && name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos &&
           name != "." && name != ".." && name != manifest_file;
  }

  [[nodiscard]] FileEntry file(const Json& json) const {
    object(json, "a file", {"bytes", "crc32c", "tensors"});
    require(json.at("tensors").is_boolean(), "tensors: expected true or false");
    return {count(json, "bytes"), checksum(json), json.at("tensors").get<bool>()};
  }

  [[nodiscard]] PartEntry part(const Json& json) {
    const bool has_rank = json.is_object() && json.contains("rank");
    if (has_rank)
      object(json, "a part", {"name", "rank", "values", "tensors"});
    else
      object(json, "a part", {"name", "values", "tensors"});
    PartEntry result;
    result.name = text(json, "name");
    if (has_rank) result.rank = static_cast<int>(count(json, "rank", largest_int));
    const Where where(*this, message("part ", result.stored_name("")));
    require(json.at("values").is_object(), "values: expected an object");
    std::set<std::string> seen;
    for (const auto& [name, value] : json.at("values").items()) {
      require(seen.insert(name).second, message(name, " is there twice"));
      if (value.is_number_float()) {
        result.values.push_back({name, value.get<double>()});
        continue;
      }
      require(value.is_number_integer(), message(name, ": expected a number, found ", value.type_name()));
      require(!value.is_number_unsigned() || value.get<std::uint64_t>() <= largest,
              message(name, " is beyond 2^63 - 1"));
      result.values.push_back({name, value.get<std::int64_t>()});
    }
    require(json.at("tensors").is_object(), "tensors: expected an object");
    for (const auto& [name, entry] : json.at("tensors").items()) {
      require(seen.insert(name).second, message(name, " is there twice"));
      const Where inner(*this, name);
      result.tensors.push_back(tensor(name, entry));
    }
    return result;
  }

  [[nodiscard]] TensorEntry tensor(const std::string& name, const Json& json) const {
    object(json, "a tensor", {"file", "dtype", "shape", "crc32c"});
    TensorEntry result{name, text(json, "file"), text(json, "dtype"), {}, checksum(json)};
    require(json.at("shape").is_array(), "shape: expected a list");
    for (const auto& extent : json.at("shape")) {
      require(extent.is_number_unsigned() && extent.get<std::uint64_t>() <= largest,
              "shape: expected numbers of 0 or more");
      result.shape.push_back(extent.get<std::int64_t>());
    }
    return result;
  }

  static constexpr std::uint64_t largest = 0x7fffffffffffffffU;
  static constexpr std::uint64_t largest_int = 0x7fffffffU;

  std::string path_;
  std::vector<std::string> where_;
};

}  // namespace detail

inline std::string Manifest::text() const {
  using Json = nlohmann::ordered_json;
  const auto line = [](const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::strict); };
  // A line for each file, value list and tensor: to be read, and compared, by people.
  std::string body =
      message("\"format\": ", line(format), ",\n\"version\": ", version, ",\n\"library\": ", line(library),
              ",\n\"id\": ", line(id), ",\n\"world_size\": ", world_size, ",\n\"step\": ", step,
              ",\n\"metric\": ", metric ? line(*metric) : "null", ",\n\"files\": {");
  std::string_view separator = "\n";
  for (const auto& [name, file] : files) {
    body += message(separator, "  ", line(name), ": {\"bytes\": ", file.bytes, R"(, "crc32c": ")",
                    detail::hex(file.crc32c), R"(", "tensors": )", file.has_tensors ? "true" : "false", "}");
    separator = ",\n";
  }
  body += "\n},\n\"parts\": [";
  std::string_view between = "\n";
  for (const PartEntry& part : parts) {
    body += message(between, "{\"name\": ", line(part.name), part.rank ? message(", \"rank\": ", *part.rank) : "",
                    ",\n  \"values\": {");
    separator = "";
    for (const auto& [name, value] : part.values) {
      const Json number = std::visit([](auto one) { return Json(one); }, value);
      body += message(separator, line(name), ": ", line(number));
      separator = ", ";
    }
    body += "},\n  \"tensors\": {";
    separator = "\n";
    for (const TensorEntry& tensor : part.tensors) {
      body += message(separator, "    ", line(tensor.name), ": {\"file\": ", line(tensor.file),
                      ", \"dtype\": ", line(tensor.dtype), ", \"shape\": ", line(tensor.shape), R"(, "crc32c": ")",
                      detail::hex(tensor.crc32c), "\"}");
      separator = ",\n";
    }
    body += part.tensors.empty() ? "}}" : "\n  }}";
    between = ",\n";
  }
  body += "\n]}\n";
  const std::uint32_t sum = accel::crc32c(std::as_bytes(std::span(body)));
  return message(detail::before_checksum, detail::hex(sum), detail::behind_checksum, body);
}

inline Manifest Manifest::parse(const std::filesystem::path& path, std::string_view text) {
  using detail::before_checksum, detail::behind_checksum;
  const std::string where = path.string();
  constexpr std::size_t head = before_checksum.size() + 8 + behind_checksum.size();
  const auto sum = detail::number_of_hex(text.substr(std::min(text.size(), before_checksum.size()), 8));
  ACCEL_CHECK(text.size() >= head && text.starts_with(before_checksum) && sum &&
                  text.substr(head - behind_checksum.size(), behind_checksum.size()) == behind_checksum,
              CheckpointError, where, ": its first line is damaged: expected ", before_checksum, "8 digits",
              behind_checksum.substr(0, 2));
  const std::uint32_t found = accel::crc32c(std::as_bytes(std::span(text.substr(head))));
  ACCEL_CHECK(found == *sum, CheckpointError, where, ": it is damaged: bytes ", head, " to ", text.size(),
              " have the checksum ", detail::hex(found), ", expected ", detail::hex(*sum));
  // Parsed values are copied and destroyed by recursion.
  const auto is_shallow = [&](int depth, detail::ManifestReader::Json::parse_event_t, const auto&) {
    ACCEL_CHECK(depth <= detail::deepest, CheckpointError, where, ": it is nested deeper than any manifest");
    return true;
  };
  try {
    auto json = detail::ManifestReader::Json::parse(text, is_shallow);
    json.erase("crc32c");
    return detail::ManifestReader(where).manifest(json);
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError(message(where, ": ", error.what()));
  }
}

}  // namespace accel::inline v0_1::checkpoint
