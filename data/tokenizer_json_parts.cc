// Parts of a tokenizer.json: normalisers, pre-tokenizers, decoders and post-processors, checked field by field.
#include "data/tokenizer_json_parts.h"

#include "absl/strings/str_cat.h"
#include "data/unicode.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr int kDeepestSequence = 8;

// A pattern object, {"String": ...} or {"Regex": ...}.
absl::StatusOr<SplitPattern> ReadPattern(const JsonNode& node) {
  ASSIGN_OR_RETURN(const JsonNode pattern, node.Object("pattern"));
  if (pattern.Has("String")) {
    ASSIGN_OR_RETURN(std::string text, pattern.String("String"));
    return SplitPattern::Literal(std::move(text));
  }
  if (!pattern.Has("Regex")) return pattern.Expected("{\"String\": ...} or {\"Regex\": ...}");
  ASSIGN_OR_RETURN(const std::string regex, pattern.String("Regex"));
  absl::StatusOr<SplitPattern> compiled = SplitPattern::FromRegex(regex);
  if (!compiled.ok()) return pattern.Error(std::string(compiled.status().message()));
  return compiled;
}

absl::StatusOr<std::string> ReadCharacter(const JsonNode& node, const char* key) {
  ASSIGN_OR_RETURN(std::string text, node.String(key));
  if (text.empty() || static_cast<size_t>(DecodeUtf8(text.data()).length) != text.size()) {
    return node.At(key).Expected("a string of one character");
  }
  return text;
}

absl::Status Unsupported(const JsonNode& node, const std::string& what, const std::string& type,
                         const std::string& supported) {
  return node.Error(absl::StrCat("the ", what, " \"", type, "\" is not supported; Thimble has ", supported));
}

// Runs `read` on the node or, if it is a Sequence, on each of its parts.
template <typename Step, typename Read>
absl::Status ReadSteps(const JsonNode& node, const char* list, int depth, Read read, std::vector<Step>& steps) {
  if (!node.value().is_object()) return node.Expected("an object or null");
  ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type != "Sequence") return read(node, type, steps);
  if (depth == kDeepestSequence) return node.Error("sequences are nested too deep");
  ASSIGN_OR_RETURN(const JsonNode parts, node.Array(list));
  for (size_t i = 0; i < parts.value().size(); ++i) {
    RETURN_IF_ERROR(ReadSteps(parts.At(i), list, depth + 1, read, steps));
  }
  return absl::OkStatus();
}

absl::Status ReadNormalizerStep(const JsonNode& node, const std::string& type, std::vector<NormalizerStep>& steps) {
  using Kind = NormalizerStep::Kind;
  constexpr std::pair<const char*, Kind> kPlain[] = {{"NFC", Kind::kNfc},
                                                     {"NFD", Kind::kNfd},
                                                     {"NFKC", Kind::kNfkc},
                                                     {"NFKD", Kind::kNfkd},
                                                     {"Lowercase", Kind::kLowercase},
                                                     {"StripAccents", Kind::kStripAccents}};
  for (const auto& [name, kind] : kPlain) {
    if (type == name) {
      steps.push_back({kind});
      return absl::OkStatus();
    }
  }
  NormalizerStep step{Kind::kPrepend};
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(step.content, node.String("prepend"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    ASSIGN_OR_RETURN(step.pattern, ReadPattern(node));
    ASSIGN_OR_RETURN(step.content, node.String("content"));
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    ASSIGN_OR_RETURN(step.strip_left, node.Bool("strip_left"));
    ASSIGN_OR_RETURN(step.strip_right, node.Bool("strip_right"));
  } else {
    return Unsupported(node, "normalizer", type,
                       "NFC, NFD, NFKC, NFKD, Prepend, Replace, Lowercase, Strip, StripAccents and Sequence");
  }
  steps.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status ReadSplit(const JsonNode& node, PreTokenizerStep& step) {
  constexpr std::pair<const char*, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  ASSIGN_OR_RETURN(step.pattern, ReadPattern(node));
  ASSIGN_OR_RETURN(step.invert, node.Bool("invert", false));
  ASSIGN_OR_RETURN(const std::string behavior, node.String("behavior"));
  for (const auto& [name, value] : kBehaviors) {
    if (behavior == name) {
      step.behavior = value;
      return absl::OkStatus();
    }
  }
  return node.At("behavior").Expected("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

absl::Status ReadMetaspace(const JsonNode& node, PreTokenizerStep& step) {
  using Prepend = PreTokenizerStep::Prepend;
  ASSIGN_OR_RETURN(step.replacement, ReadCharacter(node, "replacement"));
  ASSIGN_OR_RETURN(const std::string scheme, node.String("prepend_scheme", "always"));
  if (scheme == "first") {
    step.prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    step.prepend = Prepend::kNever;
  } else if (scheme == "always") {
    step.prepend = Prepend::kAlways;
  } else {
    return node.At("prepend_scheme").Expected("first, never or always");
  }
  ASSIGN_OR_RETURN(const bool add_prefix_space, node.Bool("add_prefix_space", true));
  if (!add_prefix_space && step.prepend != Prepend::kNever) {
    return node.Error("add_prefix_space is false, which contradicts prepend_scheme; set prepend_scheme to \"never\"");
  }
  ASSIGN_OR_RETURN(step.split, node.Bool("split", true));
  return absl::OkStatus();
}

absl::Status ReadPreTokenizerStep(const JsonNode& node, const std::string& type, std::vector<PreTokenizerStep>& steps) {
  using Kind = PreTokenizerStep::Kind;
  PreTokenizerStep step{Kind::kByteLevel};
  if (type == "ByteLevel") {
    ASSIGN_OR_RETURN(step.add_prefix_space, node.Bool("add_prefix_space"));
    ASSIGN_OR_RETURN(const bool use_regex, node.Bool("use_regex", true));
    if (use_regex) {
      ASSIGN_OR_RETURN(step.pattern, SplitPattern::FromRegex(kGpt2Pattern));
    }
  } else if (type == "Split") {
    step.kind = Kind::kSplit;
    RETURN_IF_ERROR(ReadSplit(node, step));
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    RETURN_IF_ERROR(ReadMetaspace(node, step));
  } else if (type == "Digits") {
    step.kind = Kind::kDigits;
    ASSIGN_OR_RETURN(step.individual_digits, node.Bool("individual_digits", false));
  } else {
    return Unsupported(node, "pre-tokenizer", type, "ByteLevel, Split, Metaspace, Digits and Sequence");
  }
  steps.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status ReadDecoderStep(const JsonNode& node, const std::string& type, std::vector<DecoderStep>& steps) {
  using Kind = DecoderStep::Kind;
  DecoderStep step{Kind::kByteLevel};
  if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    ASSIGN_OR_RETURN(step.pattern, ReadPattern(node));
    ASSIGN_OR_RETURN(step.content, node.String("content"));
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    ASSIGN_OR_RETURN(step.content, ReadCharacter(node, "content"));
    ASSIGN_OR_RETURN(const int64_t start, node.Integer("start", 0, kMostTokens));
    ASSIGN_OR_RETURN(const int64_t stop, node.Integer("stop", 0, kMostTokens));
    step.start = static_cast<int>(start);
    step.stop = static_cast<int>(stop);
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    PreTokenizerStep metaspace{PreTokenizerStep::Kind::kMetaspace};
    RETURN_IF_ERROR(ReadMetaspace(node, metaspace));
    step.content = metaspace.replacement;
    step.drop_first = metaspace.prepend != PreTokenizerStep::Prepend::kNever;
  } else if (type == "BPEDecoder") {
    step.kind = Kind::kBpe;
    ASSIGN_OR_RETURN(step.content, node.String("suffix"));
  } else if (type != "ByteLevel") {
    return Unsupported(node, "decoder", type,
                       "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace, BPEDecoder and Sequence");
  }
  steps.push_back(std::move(step));
  return absl::OkStatus();
}

// The ids a template's special token stands for.
absl::Status AppendTemplateToken(const JsonNode& node, const JsonNode& table, std::vector<int32_t>& ids) {
  ASSIGN_OR_RETURN(const std::string name, node.String("id"));
  if (!table.Has(name.c_str())) {
    return node.Error(absl::StrCat("the special token \"", name, "\" is not in ", table.place()));
  }
  ASSIGN_OR_RETURN(const JsonNode list, table.At(name.c_str()).Array("ids"));
  for (size_t i = 0; i < list.value().size(); ++i) {
    const auto& id = list.value()[i];
    if (!id.is_number_integer() || id < 0 || id >= kMostTokens) return list.At(i).Expected("a token id");
    ids.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadTemplate(const JsonNode& node) {
  ASSIGN_OR_RETURN(const JsonNode single, node.Array("single"));
  ASSIGN_OR_RETURN(const JsonNode table, node.Object("special_tokens"));
  std::vector<int32_t> ids;
  for (size_t i = 0; i < single.value().size(); ++i) {
    const JsonNode piece = single.At(i);
    if (piece.Has("SpecialToken")) {
      ASSIGN_OR_RETURN(const JsonNode token, piece.Object("SpecialToken"));
      RETURN_IF_ERROR(AppendTemplateToken(token, table, ids));
    } else if (piece.Has("Sequence")) {
      ASSIGN_OR_RETURN(const JsonNode sequence, piece.Object("Sequence"));
      ASSIGN_OR_RETURN(const std::string id, sequence.String("id"));
      if (id != "A") return sequence.At("id").Expected("\"A\"");
      ids.push_back(TokenizerParts::kSequence);
    } else {
      return piece.Expected("{\"SpecialToken\": ...} or {\"Sequence\": ...}");
    }
  }
  return ids;
}

absl::Status ReadPostProcessorStep(const JsonNode& node, const std::string& type, std::vector<int32_t>& ids) {
  if (type == "ByteLevel") return absl::OkStatus();  // changes the reference's offsets, not the ids
  if (type != "TemplateProcessing") {
    return Unsupported(node, "post-processor", type, "TemplateProcessing, ByteLevel and Sequence");
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> outer, ReadTemplate(node));
  // A later template's text is what the one before gave.
  std::vector<int32_t> nested;
  for (const int32_t id : outer) {
    if (id == TokenizerParts::kSequence) {
      nested.insert(nested.end(), ids.begin(), ids.end());
    } else {
      nested.push_back(id);
    }
    if (nested.size() > (1 << 16)) return node.Error("the template is longer than 65536 tokens");
  }
  ids = std::move(nested);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<NormalizerStep>> ReadNormalizer(const JsonNode& node) {
  std::vector<NormalizerStep> steps;
  RETURN_IF_ERROR(ReadSteps(node, "normalizers", 0, ReadNormalizerStep, steps));
  return steps;
}

absl::StatusOr<std::vector<PreTokenizerStep>> ReadPreTokenizer(const JsonNode& node) {
  std::vector<PreTokenizerStep> steps;
  RETURN_IF_ERROR(ReadSteps(node, "pretokenizers", 0, ReadPreTokenizerStep, steps));
  return steps;
}

absl::StatusOr<std::vector<DecoderStep>> ReadDecoder(const JsonNode& node) {
  std::vector<DecoderStep> steps;
  RETURN_IF_ERROR(ReadSteps(node, "decoders", 0, ReadDecoderStep, steps));
  return steps;
}

absl::StatusOr<std::vector<int32_t>> ReadPostProcessor(const JsonNode& node) {
  std::vector<int32_t> ids = {TokenizerParts::kSequence};
  RETURN_IF_ERROR(ReadSteps(node, "processors", 0, ReadPostProcessorStep, ids));
  return ids;
}

}  // namespace thimble
