"""What all ops that emit 8 bits share: int8 and float8_e4m3fn with a float32 scale for each group of values.

    scale = max(amax, 2^-100) / limit      limit: 127 for int8, 448 for float8_e4m3fn
    level = x / scale, to the nearest, halves to even
    x ~ level * scale

A group that holds a NaN or an infinity gets a scale that is not finite, so that nothing hides it.
"""
