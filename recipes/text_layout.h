// Plain text for a terminal of 80 columns.
#pragma once

#include <string>
#include <string_view>

namespace thimble {

// Appends `text` broken between words at 80 columns, every line indented by `indent` spaces, and a line end.
void AppendWrapped(std::string_view text, size_t indent, std::string* out);

// Appends "name   text" with the text wrapped in a column of its own that starts at `column`; on the next line where
// the name is too long for that.
void AppendEntry(std::string_view name, std::string_view text, size_t column, std::string* out);

// "message. See: thimble help", without the period where the message ends in a question mark.
std::string WithPointer(std::string_view message, std::string_view command_line);

}  // namespace thimble
