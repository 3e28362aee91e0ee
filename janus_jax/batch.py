"""The arrays of a packed training batch, which the data makes and the model reads.

B rows of T positions hold several sequences each; M text targets, U pictures to understand and G pictures to
generate a row, of N codes each.

  tokens, token_types, segment_ids, positions  int32 [B, T]; segment 0 is padding
  target_ids, target_positions, target_tasks   int32 [B, M]
  target_weights  float32 [B, M], 0 where there is no target
  und_images      uint8 [B, U, h, w, 3]
  gen_images      uint8 [B, G, h, w, 3], or instead of it
  gen_codes       int32 [B, G, N], the codes of the image tokenizer
  gen_starts      int32 [B, G], position of `<begin_of_image>`
  gen_weights     float32 [B, G], 0 where there is no picture
"""

# What feeds a position: an id, a picture to understand, or a code of a picture to generate.
TOKEN_TEXT, TOKEN_UND, TOKEN_GEN = 0, 1, 2
# What a text target is reported as.
TASK_UND, TASK_TEXT = 0, 1
