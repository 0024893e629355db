// A tokenizer of bytes and encoders on it, for tests of rows and of what is made of them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "data/row_encoder.h"
#include "tests/data/byte_tokenizer.h"
#include "tests/data/test_folder.h"

namespace thimble {

inline Row ChatRow(const std::vector<Message>& messages) {
  Row row;
  row.form = RowForm::kMessages;
  row.messages = messages;
  return row;
}

class RowEncoderTest : public TestFolder {
 protected:
  RowEncoder Encoder(const std::string& format_name, LossOn loss_on = LossOn::kResponses, bool add_bos = true) {
    ModelTokens tokens;
    tokens.bos_token = "<s>";
    tokens.bos_id = 256;
    tokens.eos_token = "</s>";
    tokens.eos_id = 257;
    tokens.add_bos = add_bos;
    auto format = MakeChatFormat(format_name, tokens, *tokenizer_);
    EXPECT_TRUE(format.ok()) << format.status();
    return RowEncoder(tokenizer_.get(), tokens, *format, loss_on);
  }
  std::unique_ptr<Tokenizer> tokenizer_ = MakeByteTokenizer({"<s>", "</s>", "<|im_start|>", "<|im_end|>"}, "<s>");
  const Row row_ = ChatRow({{"user", "hé"}, {"assistant", "ja"}});
};

}  // namespace thimble
