// toolkit.v1.Tensor as protos/toolkit/v1/tensor.proto specifies it; here of 32-bit floats alone.

export function tensorOf(numbers, shape) {
  return { dtype: "FLOAT32", shape, data: Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength) };
}

// The elements. Copied, for a typed array must begin at a multiple of its element's size, and `data` may begin anywhere.
export function elementsOf({ dtype, shape, data }) {
  const count = shape.reduce((product, length) => product * length, 1);
  if (dtype !== "FLOAT32" || data.length !== 4 * count) {
    throw new RangeError(`not a tensor of FLOAT32: ${dtype}, shape [${shape}], ${data.length} bytes`);
  }
  return new Float32Array(Uint8Array.from(data).buffer);
}
