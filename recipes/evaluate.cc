#include "recipes/evaluate.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "data/chat_format.h"
#include "data/packing.h"
#include "data/token_cache.h"
#include "ops/check.h"
#include "recipes/recipe_options.h"
#include "trainer/divergence.h"
#include "trainer/engine.h"
#include "trainer/generator.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One line on a terminal, one line every ten seconds elsewhere.
class Progress {
 public:
  Progress() : terminal_(::isatty(::fileno(stderr)) == 1) {}
  ~Progress() {
    if (terminal_ && shown_) std::fprintf(stderr, "\r\033[K");
  }
  void Show(const std::string& text) {
    if (SecondsSince(last_) < (terminal_ ? 0.2 : 10.0)) return;
    last_ = Clock::now();
    shown_ = true;
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text.c_str());
    std::fflush(stderr);
  }

 private:
  bool terminal_;
  bool shown_ = false;
  Clock::time_point last_ = Clock::now();
};

// The ids must mean the same, or a divergence would compare apples and pears.
absl::Status CheckSameVocabulary(const ModelSession& model, const ModelSession& reference) {
  const int64_t ours = model.decoder.config.vocab_size;
  const int64_t theirs = reference.decoder.config.vocab_size;
  if (ours != theirs) {
    return absl::InvalidArgumentError(absl::StrCat(reference.path, ": the reference has ", theirs, " tokens, ",
                                                   model.path, " has ", ours, "; expected the same vocabulary"));
  }
  const int64_t ids = std::max(model.tokenizer->vocab_size(), reference.tokenizer->vocab_size());
  for (int32_t id = 0; id < ids; ++id) {
    const std::string a(model.tokenizer->TokenText(id));
    const std::string b(reference.tokenizer->TokenText(id));
    if (a == b) continue;
    return absl::InvalidArgumentError(absl::StrCat(reference.path, ": token ", id, " of the reference is '", b,
                                                   "', that of ", model.path, " is '", a,
                                                   "'; expected the same vocabulary"));
  }
  return absl::OkStatus();
}

// A rows' file, tokenised for a model.
struct EvaluationRows {
  RowForm form = RowForm::kAuto;
  std::unique_ptr<RowEncoder> encoder;
  TokenisedDataset data;
  int64_t text_bytes = 0;
};

absl::StatusOr<std::unique_ptr<RowEncoder>> EncoderFor(const ModelSession& model, const EvaluationOptions& options,
                                                       bool text) {
  ModelTokens tokens = model.tokens;
  if (text && !options.eos) {
    tokens.eos_token.clear();
    tokens.eos_id = -1;
  }
  ASSIGN_OR_RETURN(ChatFormat format, MakeChatFormat(text ? "plain" : options.chat_format, tokens, *model.tokenizer));
  if (model.recipe.data().has_system()) format.default_system = model.recipe.data().system();
  return std::make_unique<RowEncoder>(model.tokenizer.get(), std::move(tokens), std::move(format), options.loss_on);
}

absl::StatusOr<EvaluationRows> ReadRows(const ModelSession& model, const EvaluationOptions& options) {
  EvaluationRows rows;
  ASSIGN_OR_RETURN(const std::unique_ptr<DatasetReader> reader, DatasetReader::Open(options.data));
  rows.form = reader->form();
  const bool text = rows.form == RowForm::kText;
  if (!text && options.context > 0) {
    return absl::InvalidArgumentError(absl::StrCat("--context cuts plain texts, and ", options.data.files[0],
                                                   " holds rows of form ", RowFormName(rows.form)));
  }
  if (text && options.exact_match) {
    return absl::InvalidArgumentError(absl::StrCat("--exact_match needs rows with questions and answers, and ",
                                                   options.data.files[0], " holds plain text"));
  }
  ASSIGN_OR_RETURN(rows.encoder, EncoderFor(model, options, text));
  ASSIGN_OR_RETURN(rows.data, TokeniseDataset(options.data, *rows.encoder, model.tokenizer_file, ""));
  Row row;
  while (text) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&row));
    if (!more) break;
    rows.text_bytes += static_cast<int64_t>(row.text.size());
  }
  return rows;
}

absl::StatusOr<BatchStream> PackRows(const EvaluationRows& rows, const EvaluationOptions& options,
                                     int64_t max_position) {
  PackingOptions packing;
  packing.shuffle = false;
  int64_t longest = 0;
  for (int64_t i = 0; i < rows.data.rows->size(); ++i) longest = std::max(longest, rows.data.rows->length(i));
  if (options.context > 0) {
    if (options.context > max_position) {
      return absl::InvalidArgumentError(
          absl::StrCat("--context=", options.context, ": the model's context is ", max_position, " tokens"));
    }
    packing.mode = PackingMode::kWindows;
    packing.seq_len = options.context;
    packing.micro_batch_size = std::max<int64_t>(1, options.batch_tokens / options.context);
  } else if (longest <= max_position) {
    packing.seq_len = std::max({longest, options.batch_tokens, int64_t{2}});
  } else if (rows.form == RowForm::kText) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.data.files[0], ": found a text of ", longest, " tokens, the model's context is ",
                     max_position, "; cut it into windows with --context=", std::min<int64_t>(max_position, 1024)));
  } else {
    packing.too_long = TooLong::kCut;
    packing.seq_len = max_position;
  }
  absl::StatusOr<BatchStream> stream = BatchStream::Make(rows.data.rows, packing);
  if (!stream.ok()) {
    return absl::Status(stream.status().code(),
                        absl::StrCat(options.data.files[0], ": ", std::string(stream.status().message())));
  }
  return stream;
}

// Loss over a stream, and the divergence from a reference beside it.
class Scorer {
 public:
  Scorer(ModelSession* model, ModelSession* reference, int64_t max_tokens)
      : model_(model), reference_(reference), max_tokens_(max_tokens), engine_(MakeEngine(model, max_tokens)) {
    if (reference != nullptr) reference_engine_ = MakeEngine(reference, max_tokens);
  }

  absl::Status Run(BatchStream* stream, Evaluation* evaluation) {
    Progress progress;
    Batch batch;
    const int64_t batches = stream->batches_per_epoch();
    for (int64_t i = 0; i < batches; ++i) {
      RETURN_IF_ERROR(stream->Next(&batch));
      ConstMatrix hidden;
      loss_ += engine_->Evaluate(batch, nullptr, &hidden);
      RETURN_IF_ERROR(engine_->status());
      targets_ += batch.num_targets;
      tokens_ += static_cast<int64_t>(batch.tokens.size());
      if (reference_ != nullptr) Compare(batch, hidden);
      progress.Show(absl::StrFormat("evaluated %d of %d tokens, loss %.4f", tokens_, stream->stats().tokens,
                                    loss_ / static_cast<double>(std::max<int64_t>(targets_, 1))));
    }
    return Finish(evaluation);
  }

 private:
  static std::unique_ptr<Engine> MakeEngine(ModelSession* model, int64_t max_tokens) {
    EngineOptions options;
    options.train = false;
    options.max_tokens = max_tokens;
    options.loss.compute = model->decoder.compute;
    return std::make_unique<Engine>(&model->decoder, &model->store, options);
  }

  void Compare(const Batch& batch, ConstMatrix hidden) {
    ConstMatrix reference_hidden;
    reference_loss_ += reference_engine_->Evaluate(batch, nullptr, &reference_hidden);
    divergence_.Add(reference_hidden, reference_->store.entry(reference_->decoder.head).view, hidden,
                    model_->store.entry(model_->decoder.head).view);
  }

  ForwardMemory Memory() const {
    ForwardMemory memory;
    memory.Add(model_->store);
    memory.Add(*engine_);
    if (reference_ == nullptr) return memory;
    memory.Add(reference_->store);
    memory.Add(*reference_engine_);
    const int64_t width = reference_->decoder.config.hidden_dim;
    memory.planned += Divergence::ScratchBytes(max_tokens_, width, model_->decoder.config.hidden_dim);
    memory.measured += divergence_.held_bytes();
    return memory;
  }

  absl::Status Finish(Evaluation* evaluation) {
    evaluation->memory = Memory();
    evaluation->targets = targets_;
    evaluation->tokens = tokens_;
    if (targets_ == 0) return absl::InvalidArgumentError("no token to score: each window holds the start of a text");
    evaluation->loss = loss_ / static_cast<double>(targets_);
    if (!std::isfinite(evaluation->loss)) {
      return absl::InvalidArgumentError(
          absl::StrCat(model_->path, ": the loss is not a finite number; the weights are damaged or too large"));
    }
    if (reference_ == nullptr) return absl::OkStatus();
    evaluation->compared = true;
    DivergenceFigures& figures = evaluation->divergence;
    figures.reference_loss = reference_loss_ / static_cast<double>(targets_);
    if (!std::isfinite(figures.reference_loss)) {
      return absl::InvalidArgumentError(
          absl::StrCat(reference_->path, ": the loss is not a finite number; the weights are damaged or too large"));
    }
    figures.top1_agreement = divergence_.Agreement();
    figures.mean_kl = divergence_.MeanKL();
    figures.kl = divergence_.TakeKL();
    std::sort(figures.kl.begin(), figures.kl.end());
    return absl::OkStatus();
  }

  ModelSession* model_;
  ModelSession* reference_;
  int64_t max_tokens_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Engine> reference_engine_;
  double loss_ = 0;
  double reference_loss_ = 0;
  int64_t targets_ = 0;
  int64_t tokens_ = 0;
  Divergence divergence_;
};

struct Question {
  std::vector<int32_t> prompt;
  std::string answer;         // without white space at both ends
  int64_t answer_tokens = 0;  // about
};

absl::StatusOr<std::vector<Question>> ReadQuestions(const RowEncoder& encoder, const DatasetOptions& data) {
  std::vector<Question> questions;
  ASSIGN_OR_RETURN(const std::unique_ptr<DatasetReader> reader, DatasetReader::Open(data));
  Row row;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&row));
    if (!more) return questions;
    Question question;
    std::string answer;
    absl::StatusOr<std::vector<int32_t>> prompt = encoder.EncodeRowPrompt(row, &answer);
    if (!prompt.ok()) {
      return absl::Status(prompt.status().code(), absl::StrCat(data.files[row.file], ":", row.line, ": ",
                                                               std::string(prompt.status().message())));
    }
    question.prompt = *std::move(prompt);
    question.answer = std::string(absl::StripAsciiWhitespace(answer));
    question.answer_tokens = static_cast<int64_t>(encoder.tokenizer().Encode(answer, false).size());
    questions.push_back(std::move(question));
  }
}

// Greedy answers against the expected ones. An answer that does not end by itself is wrong.
absl::Status MatchAnswers(ModelSession* model, const RowEncoder& encoder, const EvaluationOptions& options,
                          Evaluation* evaluation) {
  ASSIGN_OR_RETURN(const std::vector<Question> questions, ReadQuestions(encoder, options.data));
  GenerateOptions generate;
  generate.stop_tokens = encoder.StopTokens();
  if (generate.stop_tokens.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(model->path, ": --exact_match needs a token that ends an answer, and the tokenizer names no EOS"));
  }
  const int64_t limit = model->decoder.config.max_position;
  // What has run this far past the expected answer's length cannot be that answer any more.
  constexpr int64_t kMargin = 16;
  int64_t context = 0;
  for (const Question& q : questions) {
    const int64_t tokens = static_cast<int64_t>(q.prompt.size());
    if (tokens < limit)
      context = std::max(context, tokens + std::min(options.max_new_tokens, q.answer_tokens + kMargin));
  }
  evaluation->matched = true;
  evaluation->match_rows = static_cast<int64_t>(questions.size());
  std::unique_ptr<Generator> generator;
  if (context > 0) generator = std::make_unique<Generator>(&model->decoder, &model->store, std::min(context, limit));
  Progress progress;
  int64_t done = 0;
  for (const Question& q : questions) {
    ++done;
    if (static_cast<int64_t>(q.prompt.size()) >= limit) {
      ++evaluation->match_too_long;
      continue;
    }
    generate.max_new_tokens = std::min(options.max_new_tokens, q.answer_tokens + kMargin);
    const Generated answer = generator->Generate(q.prompt, generate, nullptr);
    RETURN_IF_ERROR(generator->status());
    const std::string text = encoder.tokenizer().Decode(answer.tokens, /*skip_special_tokens=*/true);
    const bool correct = answer.stopped && absl::StripAsciiWhitespace(text) == q.answer;
    evaluation->match_correct += correct ? 1 : 0;
    progress.Show(
        absl::StrFormat("answered %d of %d rows, %d correct", done, evaluation->match_rows, evaluation->match_correct));
  }
  ForwardMemory memory;
  memory.Add(model->store);
  if (generator != nullptr) memory.Add(model->decoder, &model->store, *generator);
  evaluation->memory.Max(memory);
  return absl::OkStatus();
}

}  // namespace

EvaluationOptions EvaluationOptionsOf(const ModelSession& model) {
  EvaluationOptions options;
  options.data = ValidationDatasetOptionsOf(model.recipe);
  options.data.files.clear();
  options.chat_format = ChatFormatNameOf(model.recipe);
  options.loss_on = LossOnOf(model.recipe);
  return options;
}

absl::StatusOr<Evaluation> EvaluateModel(ModelSession* model, ModelSession* reference,
                                         const EvaluationOptions& options) {
  int64_t max_position = model->decoder.config.max_position;
  if (reference != nullptr) {
    RETURN_IF_ERROR(CheckSameVocabulary(*model, *reference));
    max_position = std::min(max_position, reference->decoder.config.max_position);
  }
  ASSIGN_OR_RETURN(const EvaluationRows rows, ReadRows(*model, options));
  ASSIGN_OR_RETURN(BatchStream stream, PackRows(rows, options, max_position));
  Evaluation evaluation;
  evaluation.data_description = rows.data.description;
  if (rows.form != RowForm::kText) evaluation.chat_format = rows.encoder->format().description;
  evaluation.rows = stream.stats().rows_kept;
  evaluation.rows_cut = stream.stats().rows_cut;
  evaluation.rows_no_targets = stream.stats().rows_no_targets;
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(Scorer(model, reference, stream.max_batch_tokens()).Run(&stream, &evaluation));
  evaluation.seconds = SecondsSince(start);
  // Every byte is scored where BOS stands before the first token.
  const ModelTokens& tokens = rows.encoder->tokens();
  if (rows.text_bytes > 0 && tokens.add_bos && tokens.bos_id >= 0 && evaluation.rows_no_targets == 0) {
    evaluation.bits_per_byte = evaluation.loss * static_cast<double>(evaluation.targets) / std::log(2.0) /
                               static_cast<double>(rows.text_bytes);
  }
  if (options.exact_match) RETURN_IF_ERROR(MatchAnswers(model, *rows.encoder, options, &evaluation));
  return evaluation;
}

double Percentile(const std::vector<float>& sorted, double share) {
  CHECK(!sorted.empty());
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<int64_t>(rank - 1, 0, static_cast<int64_t>(sorted.size()) - 1)];
}

}  // namespace thimble
