#include "trainer/tape.h"
