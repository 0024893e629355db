// The tape; see the trainer's own commits.
#pragma once
