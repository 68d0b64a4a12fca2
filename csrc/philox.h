// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): a counter of four
// 32-bit words and a key of two to four random words.
#pragma once

#include "lanes.h"

namespace rsfast {

constexpr int kRounds = 10;

struct Key {
  uint64_t low[kRounds], high[kRounds];
};

RSFAST_FN Key make_key(uint64_t seed) {
  Key key;
  for (int i = 0; i < kRounds; ++i) {
    key.low[i] = static_cast<uint32_t>(seed + i * 0x9E3779B9ull);
    key.high[i] = static_cast<uint32_t>((seed >> 32) + i * 0xBB67AE85ull);
  }
  return key;
}

// Four words, each in the low half of a 64-bit lane; the high halves are arbitrary. A word that is the same in all lanes
// may stay one uint64_t: the compiler then computes what depends on it alone once.
template <class A, class B, class C, class D>
struct Words {
  A a;
  B b;
  C c;
  D d;
};

template <class A, class B, class C, class D>
RSFAST_FN auto philox_round(Words<A, B, C, D> w, uint64_t key_low, uint64_t key_high) {
  const auto even = multiply_wide(0xD2511F53u, w.a);
  const auto odd = multiply_wide(0xCD9E8D57u, w.c);
  const auto a = (odd >> 32) ^ (w.b ^ key_low);
  const auto c = (even >> 32) ^ (w.d ^ key_high);
  return Words<decltype(a + 0), decltype(odd + 0), decltype(c + 0), decltype(even + 0)>{a, odd, c, even};
}

// What the first two rounds need only a row's words for. odd: the product of the third word; even: that of the word which
// this product becomes in the second round; last: the fourth word.
template <class R>
struct RowProducts {
  R last, odd, even;
};

template <class R>
RSFAST_FN RowProducts<R> row_products(R c1, R c2, R c3, const Key& key) {
  const R odd = multiply_wide(0xCD9E8D57u, c2);
  return {c3, odd, multiply_wide(0xD2511F53u, (odd >> 32) ^ (c1 ^ key.low[0]))};
}

// Counter (block, rest of the row's counter). The first rounds stand apart because their words are of mixed type: the block
// differs between lanes, or the row does.
template <class B, class R>
RSFAST_FN auto philox(B block, const RowProducts<R>& row, const Key& key) {
  const auto even = multiply_wide(0xD2511F53u, block);
  const auto odd = multiply_wide(0xCD9E8D57u, (even >> 32) ^ (row.last ^ key.high[0]));
  const auto a = (odd >> 32) ^ (row.odd ^ key.low[1]);
  const auto c = (row.even >> 32) ^ (even ^ key.high[1]);
  using Wide = decltype(odd + 0);
  auto words = philox_round(Words<Wide, Wide, Wide, R>{a, odd, c, row.even}, key.low[2], key.high[2]);
#pragma GCC unroll 7
  for (int i = 3; i < kRounds; ++i) words = philox_round(words, key.low[i], key.high[i]);
  return words;
}

template <class B, class R>
RSFAST_FN auto philox(B block, R c1, R c2, R c3, const Key& key) {
  return philox(block, row_products(c1, c2, c3, key), key);
}

}  // namespace rsfast
