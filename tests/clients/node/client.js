// Calls a graph: a message, a tensor, a stream, an error. Prints what came back, as JSON.
// node client.js 127.0.0.1:50051
import { credentials, status } from "@grpc/grpc-js";
import { Echo } from "./echo.js";
import { elementsOf, tensorOf } from "./tensor.js";

const echo = new Echo(process.argv[2], credentials.createInsecure());
const within = (seconds) => ({ deadline: Date.now() + 1000 * seconds });

// A call with one reply, as a promise.
function call(method, request) {
  return new Promise((resolve, reject) => {
    echo[method](request, within(20), (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

const said = await call("Say", { text: "hello", tags: ["from", "Node"] });

const pixels = Float32Array.from({ length: 32 * 48 }, (_, index) => index / 2);
const image = { pixels: tensorOf(pixels, [32, 48]), caption: "a slope" };
const total = await call("Total", image);
const reflected = await call("Reflect", image);

const numbers = [];
for await (const note of echo.Repeat({ text: "again", times: 3 }, within(20))) {
  numbers.push(note.number);
}

const error = await call("Say", { text: "" }).catch((error) => error);

console.log(
  JSON.stringify({
    said: [said.text, ...said.tags],
    total: total.number,
    reflected: [reflected.pixels.dtype, reflected.pixels.shape, elementsOf(reflected.pixels).at(-1)],
    numbers,
    error: [status[error.code], error.details],
  }),
);
echo.close();
